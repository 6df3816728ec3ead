"""Region prompts: shares of tiles, mixing, which rows are replaced, and what a pipeline is left with."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_diffusers import SMALL, error, make_unet, paint, quiet
from torch import Tensor

import tiledattn as ta
import tiledattn.diffusers as td
from tiledattn.diffusers.mixing import mix_call
from tiledattn.diffusers.regions import region_weights
from tiledattn.diffusers.view import CanvasView
from tiledattn.models import textures_unet

ROUNDING = 1e-4
APART: dict[str, Any] = {"tile": 64, "halo": 0, "conv_halo": False, "norm": "tile"}
WHOLE = (0, 0, 128, 64)
WATCHED = {"encode_prompt", "check_inputs"}


def region(box: Any = WHOLE, prompt: str = "a wood", **options: Any) -> td.Region:
    return td.Region(box, prompt, **options)


@pytest.fixture(params=["sd", "sdxl"])
def pipe(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def shares(boxes: list[Any], layout: ta.TileLayout, pixels: int = 4) -> Tensor:
    return region_weights(boxes, CanvasView(layout), (pixels, pixels))


def by_pixels(box: td.Region, layout: ta.TileLayout, pixels: int) -> Tensor:
    """The share of each tile, from a picture of the box whose edges are straight lines."""
    lines = []
    for (first, last), length, wrap in zip(
        ((box.box[1], box.box[3]), (box.box[0], box.box[2])), layout.size, layout.wrap, strict=True
    ):
        size, fine = length * pixels, 8
        x = (torch.arange(-2 * size * fine, 3 * size * fine, dtype=torch.float64) + 0.5) / fine
        whole = last - first >= size
        rise = fall = box.feather
        if not wrap:
            rise, fall = (0 if first <= 0 else rise), (0 if last >= size else fall)
        if whole:
            rise = fall = 0

        def ramp(x: Tensor, width: float) -> Tensor:
            return (x / width + 0.5).clamp(0, 1) if width else (x > 0).double()

        line = (ramp(x - first, rise) - ramp(x - last, fall)).unflatten(0, (5, size * fine))
        lines.append((line.sum(0) if wrap else line[2]).clamp(max=1))
    picture = lines[0][:, None] * lines[1]
    scaled = ta.TileLayout(
        *(tuple(v * pixels * 8 for v in x) for x in (layout.size, layout.tile, layout.overlap)), layout.wrap
    )
    return ta.extract_tiles(picture[None, None], scaled).flatten(1).mean(1)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_share_is_what_the_box_covers(data: Any) -> None:
    tile, n = data.draw(st.tuples(st.integers(2, 4), st.integers(1, 3)))
    overlap = data.draw(st.integers(0, tile - 1))
    layout = ta.TileLayout(
        (tile, tile + n), (tile, tile), (0, overlap), data.draw(st.tuples(st.booleans(), st.booleans()))
    )
    height, width = 4 * layout.size[0], 4 * layout.size[1]
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = (left, top, data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height)))
    one = region(box, feather=data.draw(st.integers(0, 6)))
    got = shares([one], layout)
    assert torch.allclose(got[:, 0], by_pixels(one, layout, 4), atol=1e-3)
    assert torch.allclose(got.sum(1), torch.ones(layout.num_tiles, dtype=torch.float64))


def test_weights_sum_to_one_however_boxes_overlap() -> None:
    layout = ta.TileLayout((4, 12), (4, 4))
    assert shares([region((0, 0, 24, 16))], layout).tolist() == [[1, 0], [0.5, 0.5], [0, 1]]
    both = shares([region((0, 0, 24, 16)), region((0, 0, 16, 16), weight=3.0)], layout)
    assert both.tolist() == [[0.25, 0.75, 0], [0.5, 0, 0.5], [0, 0, 1]]
    assert shares([region((0, 0, 48, 16), weight=0.25)], layout).tolist() == [[0.25, 0.75]] * 3


def test_feathered_neighbours_go_over_into_one_another() -> None:
    layout = ta.TileLayout((4, 32), (4, 4))
    two = [region((0, 0, 64, 16), feather=32), region((64, 0, 128, 16), feather=32)]
    got = shares(two, layout)
    assert torch.allclose(got[:, :2].sum(1), torch.ones(8, dtype=torch.float64))
    assert got[:, 0].tolist() == [1, 1, 1, 0.75, 0.25, 0, 0, 0]


def test_a_video_has_boxes_for_all_frames() -> None:
    layout = ta.TileLayout((6, 4, 8), (3, 4, 4))
    weights = region_weights([region((0, 0, 32, 32))], CanvasView(layout), (4, 8, 8))
    assert weights.tolist() == [[1, 0], [0, 1]] * 2


def test_masks_are_united_and_prompts_padded_to_the_longest() -> None:
    call = {"text": torch.ones(4, 2, 3), "text_mask": torch.tensor([[1, 1], [1, 0]] * 2)}
    longer = {"text": torch.full((1, 4, 3), 5.0), "text_mask": torch.tensor([[1, 1, 1, 0]])}
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    got = mix_call(call, [longer], [False, True], weights)
    assert got["text_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    rows = got["text"][..., 0]
    assert rows[0].tolist() == [1, 1, 0, 0]
    assert rows[1].tolist() == [5, 5, 5, 5]
    assert rows[3].tolist() == [3, 2.5, 2.5, 2.5]
    assert call["text"].shape == (4, 2, 3)


def test_without_a_mask_lengths_must_agree() -> None:
    call = {"text": torch.ones(2, 2, 3)}
    with pytest.raises(ValueError, match=r"regions: text: a region's prompt has shape \(4, 3\).*no mask"):
        mix_call(call, [{"text": torch.ones(1, 4, 3)}], [True], torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    with pytest.raises(ValueError, match="regions: other: only some"):
        mix_call(call, [{"other": torch.ones(1, 4, 3)}], [True], torch.ones(2, 2))


RUNS: dict[str, dict[str, Any]] = {
    "guidance": {"negative_prompt": "a river"},
    "no guidance": {"guidance_scale": 1.0},
    "several images": {"num_images_per_prompt": 2},
    "rescaled": {"guidance_rescale": 0.5},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_box_of_the_whole_canvas_is_that_prompt(pipe: Any, name: str) -> None:
    call = RUNS[name]
    with td.enable_tiling(pipe, **APART):
        want, other = paint(pipe, prompt="a wood", **call), paint(pipe, prompt="a sea", **call)
    with td.enable_tiling(pipe, **APART, regions=[region()]):
        got = paint(pipe, prompt="a sea", **call)
    assert error(got, want) < ROUNDING < error(other, want)


def test_each_tile_reads_its_own_prompt(pipe: Any) -> None:
    with td.enable_tiling(pipe, **APART):
        want, other = paint(pipe, prompt="a wood"), paint(pipe, prompt="a sea")
    with td.enable_tiling(pipe, **APART, regions=[region((0, 0, 64, 64))]):
        got = paint(pipe, prompt="a sea")
    assert error(got[..., :16], want[..., :16]) < ROUNDING
    assert error(got[..., 16:], other[..., 16:]) < ROUNDING


def test_rows_of_several_prompts_keep_their_own_rest(sd: Any) -> None:
    """A batch of prompts: each row's rest is its own prompt."""
    with td.enable_tiling(sd, **APART):
        want, box = paint(sd, prompt=["a sea", "a hill"]), paint(sd, prompt=["a wood", "a wood"])
    with td.enable_tiling(sd, **APART, regions=[region((0, 0, 64, 64))]):
        got = paint(sd, prompt=["a sea", "a hill"])
    assert error(got[..., :16], box[..., :16]) < ROUNDING
    assert error(got[..., 16:], want[..., 16:]) < ROUNDING


def test_a_tile_in_two_regions_reads_a_mix(sd: Any) -> None:
    """Its conditioning is the mean of both, which passing the mean itself shows."""
    first, second = (sd.encode_prompt(text, "cpu", 1, False)[0] for text in ("a wood", "a sea"))
    negative = sd.encode_prompt("", "cpu", 1, False)[0]
    embeds = {"prompt": None, "prompt_embeds": 0.25 * first + 0.75 * second, "negative_prompt_embeds": negative}
    with td.enable_tiling(sd, **APART):
        want = paint(sd, 64, 64, **embeds)
    with td.enable_tiling(sd, **APART, regions=[region((0, 0, 16, 64)), region((16, 0, 64, 64), "a sea")]):
        assert error(paint(sd, 64, 64, prompt="a hill"), want) < ROUNDING


@pytest.mark.parametrize("prompt", ["", "a river"])
def test_a_negative_prompt_that_reads_the_same(sd: Any, prompt: str) -> None:
    call = {"prompt": prompt, "negative_prompt": prompt}
    with td.enable_tiling(sd, **APART):
        want = paint(sd, **{**call, "prompt": "a wood"})
    with td.enable_tiling(sd, **APART, regions=[region()]):
        assert error(paint(sd, **call), want) < ROUNDING


def test_embeddings_instead_of_a_prompt_and_guidance_dropped_half_way(sd: Any) -> None:
    positive, negative = sd.encode_prompt("a sea", "cpu", 1, True)
    call = {"prompt": None, "prompt_embeds": positive, "negative_prompt_embeds": negative}

    def drop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 1.0
        return {"prompt_embeds": tensors["prompt_embeds"][-1:]}

    options = {"callback_on_step_end": drop, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with td.enable_tiling(sd, **APART):
        want = paint(sd, prompt="a wood", **options)
    with td.enable_tiling(sd, **APART, regions=[region()]):
        assert error(paint(sd, **call, **options), want) < ROUNDING


def test_settings_of_the_pipelines_own_encoding_hold_for_regions(sdxl: Any) -> None:
    with td.enable_tiling(sdxl, **APART):
        want, plain = paint(sdxl, prompt="a wood", clip_skip=1), paint(sdxl, prompt="a wood")
    with td.enable_tiling(sdxl, **APART, regions=[region()]):
        got = paint(sdxl, prompt="a sea", clip_skip=1)
    assert error(got, want) < ROUNDING < error(plain, want)


def test_prompts_are_encoded_once_a_run(sd: Any) -> None:
    calls: list[Any] = []
    sd.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    boxes = [region((0, 0, 64, 64)), region((64, 0, 96, 64)), region((96, 0, 128, 64), "a hill")]
    with td.enable_tiling(sd, **APART, regions=boxes):
        paint(sd, steps=4)
        assert len(calls) == 4  # prompt, negative prompt, and two that regions have
        paint(sd, steps=2)
        assert len(calls) == 8


def test_rows_are_compared_once_a_run(sd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiledattn.diffusers import prompts

    seen: list[int] = []
    among = prompts._is_among
    monkeypatch.setattr(prompts, "_is_among", lambda *args: seen.append(1) or among(*args))
    with td.enable_tiling(sd, **APART, regions=[region()]):
        paint(sd, steps=5)
    assert len(seen) == 4  # two rows, each against both prompts


def test_boxes_outside_the_canvas(sd: Any) -> None:
    with td.enable_tiling(sd, **APART, regions=[region((0, 0, 130, 64))]):
        with pytest.raises(ValueError, match=r"box \(0, 0, 130, 64\).*outside .* is 128 pixels wide and 64"):
            paint(sd)
        assert paint(sd, 64, 192).isfinite().all()


BOXES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"box": (0, 0, 64)}, ValueError, "box: got 3 numbers"),
    ({"box": 64}, TypeError, "box: got 64"),
    ({"box": "0,0,64,64"}, TypeError, "box: got '0,0,64,64'"),
    ({"box": (-1, 0, 64, 64)}, ValueError, "box left: got -1"),
    ({"box": (0, 0, 0, 64)}, ValueError, "empty"),
    ({"box": (0, 32, 64, 16)}, ValueError, "empty"),
    ({"box": (0, 0, float("nan"), 64)}, ValueError, "box right: got nan"),
    ({"box": (0, True, 64, 64)}, TypeError, "box top: got True"),
    ({"box": (0, 0, 64, "64")}, TypeError, "box bottom: got '64'"),
    ({"prompt": None}, TypeError, "prompt: got None"),
    ({"prompt": ["a"]}, TypeError, r"prompt: got \['a'\]"),
    ({"weight": -0.5}, ValueError, "weight: got -0.5"),
    ({"weight": float("inf")}, ValueError, "weight: got inf"),
    ({"weight": "1"}, TypeError, "weight: got '1'"),
    ({"feather": -1}, ValueError, "feather: got -1"),
    ({"feather": None}, TypeError, "feather: got None"),
]


@pytest.mark.parametrize(("change", "kind", "words"), BOXES, ids=[str(change) for change, *_ in BOXES])
def test_bad_regions(change: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        td.Region(**{"box": (0, 0, 64, 64), "prompt": "a", **change})


def test_a_bare_model_has_no_text_encoder() -> None:
    with pytest.raises(NotImplementedError, match="bare model has no text encoder"):
        td.enable_tiling(make_unet("sd"), tile=16, unit="latent", regions=[region()])


def test_a_pipeline_without_its_text_encoder(sd: Any) -> None:
    embeds, negative = sd.encode_prompt("a hill", "cpu", 1, True)
    with td.enable_tiling(sd, **APART, regions=[region()]):
        sd.text_encoder = sd.tokenizer = None
        with pytest.raises(ValueError, match=r"regions: .* text_encoder and tokenizer are None; keep"):
            paint(sd, prompt=None, prompt_embeds=embeds, negative_prompt_embeds=negative)


def test_another_pipeline_on_the_same_denoiser_is_refused(sd: Any) -> None:
    """Its prompt isn't the one that was encoded."""
    other = quiet(StableDiffusionPipeline(**sd.components, requires_safety_checker=False))
    with td.enable_tiling(sd, **APART, regions=[region()]):
        with pytest.raises(ValueError, match="has encoded no prompt"):
            paint(other)
        paint(sd)
        with pytest.raises(ValueError, match="neither the prompt nor the negative prompt"):
            paint(other, prompt="a hill")


def test_changed_embeddings_are_refused(sd: Any) -> None:
    def change(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": tensors["prompt_embeds"].mul_(2)}

    options = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with td.enable_tiling(sd, **APART, regions=[region()]), pytest.raises(ValueError, match="neither the prompt"):
        paint(sd, **options)


def test_after_a_run_that_broke_off(sd: Any) -> None:
    """The next run's prompt is a positive one again, although the denoiser wasn't called in between."""
    with td.enable_tiling(sd, **APART, regions=[region()]):
        want = paint(sd, prompt="a sea")
        with pytest.raises(Exception, match="generator"):
            sd("a sea", height=64, width=128, num_inference_steps=1, generator=[torch.Generator()] * 3)
        assert torch.equal(paint(sd, prompt="a sea"), want)


def test_the_pipeline_is_left_as_it_was(sd: Any) -> None:
    want, before = paint(sd), set(vars(sd))
    first = td.enable_tiling(sd, **APART, regions=[region()])
    assert set(vars(sd)) - before == {*WATCHED, "_tiledattn_tiling"}
    second = td.enable_tiling(sd, **APART, regions=[region()])
    first.disable()
    assert set(vars(sd)) - before == {*WATCHED, "_tiledattn_tiling"}
    second.disable()
    assert set(vars(sd)) == before
    assert torch.equal(paint(sd), want)


def test_a_strangers_wrapper_stays(sd: Any) -> None:
    calls: list[int] = []
    plain = sd.encode_prompt

    def before(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return plain(*args, **kwargs)

    sd.encode_prompt = before
    tiling = td.enable_tiling(sd, **APART, regions=[region()])
    watched = sd.encode_prompt
    paint(sd)
    assert len(calls) == 2
    sd.encode_prompt = after = lambda *args, **kwargs: watched(*args, **kwargs)
    tiling.disable()
    assert sd.encode_prompt is after
    paint(sd)
    assert len(calls) == 3
    sd.encode_prompt = watched
    td.enable_tiling(sd, **APART, regions=[region()]).disable()
    assert sd.encode_prompt is before


def test_a_copied_pipeline_has_regions_of_its_own(sd: Any) -> None:
    with td.enable_tiling(sd, **APART, regions=[region()]):
        want = paint(sd)
        copied = copy.deepcopy(sd)
        assert torch.equal(paint(copied), want)
        td.disable_tiling(copied)
        assert not WATCHED & set(vars(copied))
        assert torch.equal(paint(sd), want)
    assert not WATCHED & set(vars(sd))


def test_offloaded_text_encoders(sd: Any) -> None:
    with td.enable_tiling(sd, **APART, regions=[region()]):
        want = paint(sd)
        sd.enable_model_cpu_offload(device="cpu")
        assert torch.equal(paint(sd), want)


def test_image_to_image(sd: Any) -> None:
    pipe = quiet(StableDiffusionImg2ImgPipeline(**sd.components, requires_safety_checker=False))
    picture = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(5))

    def repaint(prompt: str) -> Tensor:
        seed = torch.Generator().manual_seed(0)
        return pipe(prompt, picture, 0.5, 4, generator=seed, output_type="latent").images

    with td.enable_tiling(pipe, **APART):
        want = repaint("a wood")
    with td.enable_tiling(pipe, **APART, regions=[region()]):
        assert error(repaint("a sea"), want) < ROUNDING


def test_brick_on_the_left_and_grass_on_the_right() -> None:
    """The shipped model, judged by the hue that each material has."""
    pipe = quiet(StableDiffusionPipeline.from_pretrained(textures_unet(), dtype=torch.float32))
    pipe.vae.enable_tiling()
    boxes = [td.Region((0, 0, 128, 64), "a photo of a brick wall"), td.Region((128, 0, 256, 64), "a photo of grass")]
    with td.enable_tiling(pipe, tile=64, overlap=32, norm="tile", regions=boxes):
        seed = torch.Generator().manual_seed(0)
        picture = pipe(
            "", height=64, width=256, guidance_scale=1.5, num_inference_steps=12, generator=seed, output_type="np"
        )
    left, right = np.split(picture.images[0], 2, axis=1)
    assert left[..., 0].mean() > 1.3 * left[..., 1].mean()
    assert right[..., 1].mean() > 1.1 * right[..., 0].mean()
    grey = left[:, :96].mean(-1)
    assert grey.mean(1).std() > 1.5 * grey.mean(0).std()  # courses are level
    lawn = right[:, 32:].mean(-1)
    assert lawn.mean(1).std() < 1.5 * lawn.mean(0).std()


def test_compiled(sd_parts: dict[str, Any]) -> None:
    """The graph breaks where rows are told apart, and where the step is looked up."""
    unet = make_unet("sd", **SMALL)
    pipe = quiet(StableDiffusionPipeline(**{**copy.deepcopy(sd_parts), "unet": unet}))
    options = {"tile": 32, "wrap": True, "regions": [region((0, 0, 32, 32))], "jitter": 1}
    with td.enable_tiling(pipe, **options):
        want = paint(pipe, 32, 64, steps=1)
        pipe.unet = torch.compile(unet, backend="eager")
        assert error(paint(pipe, 32, 64, steps=1), want) < ROUNDING
