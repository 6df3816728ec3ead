"""Work on paper: right on canvases that can be counted by hand, and quick on large ones."""

import time

import pytest

from tiledattn import TileLayout
from tiledattn.bench import paper, report

ONE = paper.Model("one", 16, (paper.Level(3, 2, 5, 4),), 0, 100.0, 4)
WITH_TEXT = ONE._replace(text=7)


def seen(layout, halo):
    """Pairs of a query and a key, one by one."""
    pairs = 0
    for y, x in layout.origins:
        rows = range(max(0, y - halo), min(layout.size[0], y + layout.tile[0] + halo))
        columns = range(max(0, x - halo), min(layout.size[1], x + layout.tile[1] + halo))
        pairs += layout.tile_positions * len(rows) * len(columns)
    return pairs


@pytest.mark.parametrize("canvas", [16, 32, 48, 80])
def test_ours_by_hand(canvas):
    tokens = TileLayout((canvas // 4,) * 2, 4)
    found = paper.ours(ONE, canvas)
    assert found.tiles == tokens.num_tiles
    assert found.attention == 4 * seen(tokens, 1) * 3 * 2 * 5
    assert found.other == 100.0 * tokens.num_tiles
    assert found.bytes == 4 * tokens.num_tiles * 16 * 3 * 2 * 5 * 2
    assert found.gathered == (4 * seen(tokens, 1) / 16 * 3 * 2 * 5 * 2 if canvas > 16 else 0)


def test_text_joins_every_tile_and_sees_its_own_only():
    plain, with_text = paper.ours(ONE, 32), paper.ours(WITH_TEXT, 32)
    tiles, own, text = 4, 16, 7
    assert with_text.attention - plain.attention == 4 * tiles * (own * text + text * (own + text)) * 30
    assert with_text.other == 400.0
    # untiled the text comes once
    assert paper.whole(WITH_TEXT, 32).other == pytest.approx(100.0 * (64 + 7) / (16 + 7))


def test_one_tile_is_the_untiled_model():
    for model in paper.MODELS:
        assert paper.ours(model, model.tile) == paper.whole(model, model.tile)
        assert paper.blended(model, model.tile, 50) == paper.whole(model, model.tile)


def test_blended_tiles_by_hand():
    found = paper.blended(ONE, 32, 50)
    assert found.tiles == 9
    assert found.attention == 4 * 9 * 16 * 16 * 30
    assert found.other == 900.0


def test_the_untiled_model_is_quadratic_and_ours_linear():
    (first, second), (small, large) = (
        [of(paper.MODELS[0], canvas) for canvas in (32768, 65536)] for of in (paper.ours, paper.whole)
    )
    assert second.step / first.step == pytest.approx(4, rel=0.01)
    assert large.attention / small.attention == 16


def test_the_largest_canvas_takes_no_minutes():
    began = time.process_time()
    assert [len(table.rows) for table in paper.tables()] == [len(paper.CANVASES)] * len(paper.MODELS)
    assert time.process_time() - began < 30


def test_the_table():
    table = paper.table(ONE, (16, 32))
    lines = report.lines_of(table)
    assert lines[0].startswith(
        "| canvas | tiles | attention | whole step | exponent | whole-canvas attention | blended"
    )
    assert [cell.text for cell in table.rows[0]][4:9] == ["", "1", "1", "1", "1"]
    assert len({len(row) for row in [table.head, *table.rows]}) == 1


def sdxl(diffusers):
    return diffusers.UNet2DConditionModel(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        transformer_layers_per_block=(1, 2, 10),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


@pytest.mark.parametrize("model", paper.MODELS, ids=lambda model: model.name)
def test_the_figures_of_a_native_picture_are_those_of_diffusers(model):
    diffusers = pytest.importorskip("diffusers")
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        if model.name == "SDXL":
            extra = {"text_embeds": torch.randn(1, 1280), "time_ids": torch.randn(1, 6)}
            inputs = torch.randn(1, 4, 128, 128), torch.randn(1), torch.randn(1, 77, 2048)
            sdxl(diffusers)(*inputs, added_cond_kwargs=extra)
        else:
            places = {"img_ids": torch.zeros(4096, 3), "txt_ids": torch.zeros(512, 3)}
            inputs = torch.randn(1, 4096, 64), torch.randn(1, 512, 4096), torch.randn(1, 768), torch.rand(1)
            diffusers.FluxTransformer2DModel(guidance_embeds=True)(*inputs, **places, guidance=torch.rand(1))
    found = paper.ours(model, model.tile)
    assert found.step == pytest.approx(counter.get_total_flops(), rel=1e-6)
