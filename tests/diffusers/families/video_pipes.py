"""Tiny pipelines for video of many parts, built offline."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    LTX2Pipeline,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from tiny_diffusers import shake
from tiny_transformers.ltx2 import make_ltx2
from transformers import ByT5Tokenizer, Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl import Qwen2_5_VLTextModel

from .test_image_pipelines import gemma
from .texts import WIDTH, WORDS, t5_encoder, word_tokenizer
from .video_parts import flow

CONNECTOR = {"attention_heads": 2, "layers": 1, "learnable_registers": None}


def hunyuan15() -> HunyuanVideo15Pipeline:
    """HunyuanVideo 1.5; its chat template is longer than the 108 tokens that the pipeline cuts off."""
    words = word_tokenizer()
    words.chat_template = "a " * 120 + words.chat_template
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        image_embed_dim=8,
        rope_axes_dim=(4, 4, 4),
        target_size=64,
    )
    torch.manual_seed(5)
    config = Qwen2_5_VLTextConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        rope_parameters={"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 10000.0},
    )
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, spatial_compression_ratio=8
    )
    return HunyuanVideo15Pipeline(
        text_encoder=Qwen2_5_VLTextModel(config).eval(),
        tokenizer=words,
        transformer=shake(transformer),
        vae=shake(vae, 1),
        scheduler=flow(),
        text_encoder_2=t5_encoder(),
        tokenizer_2=ByT5Tokenizer(),
        guider=ClassifierFreeGuidance(guidance_scale=3.0),
    )


def ltx2() -> LTX2Pipeline:
    """LTX-2, with sound; 2 frames and 4x4 pixels a latent."""
    torch.manual_seed(7)
    connectors = LTX2TextConnectors(
        caption_channels=WIDTH,
        text_proj_in_factor=3,
        **{f"{kind}_connector_num_{name}": n for kind in ("video", "audio") for name, n in CONNECTOR.items()},
        video_connector_attention_head_dim=8,
        audio_connector_attention_head_dim=8,
    )
    vae = AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1, 1),
        down_block_types=("LTX2VideoDownBlock3D",) * 2,
        downsample_type=("spatiotemporal", "spatiotemporal"),
        spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True, False),
        decoder_inject_noise=(False, False, False),
        upsample_type=("spatiotemporal", "spatiotemporal"),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        patch_size=2,
    )
    audio_vae = AutoencoderKLLTX2Audio(base_channels=4, ch_mult=(1,), num_res_blocks=1, latent_channels=2, mel_bins=8)
    return LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=shake(vae, 1),
        audio_vae=audio_vae,
        text_encoder=gemma(),
        tokenizer=word_tokenizer(),
        connectors=connectors,
        transformer=make_ltx2(caption_channels=16, perturbed_attn=True)(),
        vocoder=LTX2Vocoder(
            in_channels=16,
            hidden_channels=8,
            upsample_kernel_sizes=[4],
            upsample_factors=[2],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1, 3]],
        ),
    )
