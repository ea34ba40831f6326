"""Tiny random models that see, with their processors: one per family, made without a download."""

from pathlib import Path

import torch
from helpers import WORDS

from estune.engines.processor import NoVideos, without_videos

_TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
_IMAGE = "<image>"
_MARKS = (
    "<image>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|video_pad|>",
    "<boi>",
    "<eoi>",
    "<audio>",
)
_SMOL = ("<fake_token_around_image>", "<global-img>", "<row_1_col_1>", "<end_of_utterance>")
_NAMED = {
    "image_token": _IMAGE,
    "boi_token": "<boi>",
    "eoi_token": "<eoi>",
    "start_image_token": "<boi>",
    "end_image_token": "<eoi>",
    "context_image_token": _IMAGE,
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "audio_token": "<audio>",
    "boa_token": "<audio>",
    "eoa_token": "<audio>",
}
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}IMAGE{% else %}{{ p['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)


def tokenizer(image: str):
    """A tokenizer of words whose chat template writes `image` for an image."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", "user", "assistant", *WORDS, *_MARKS, *_SMOL]
    inner = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=[*_MARKS, *_SMOL],
        extra_special_tokens=_NAMED,
    )
    made.chat_template = TEMPLATE.replace("IMAGE", image)
    return made


def _ids(made) -> dict[str, int]:
    return {name: made.convert_tokens_to_ids(token) for name, token in _NAMED.items()}


def llava(made, text):
    from transformers import LlavaConfig
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.processing_llava import LlavaProcessor

    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        "projection_dim": 24,
    }
    config = LlavaConfig(
        vision_config=vision,
        text_config={"model_type": "llama", **text},
        image_token_id=_ids(made)["image_token"],
        vision_feature_layer=-1,
    )
    size = {"shortest_edge": 16}
    images = CLIPImageProcessorPil(size=size, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(
        images,
        made,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=made.chat_template,
    )
    return config, processor


def gemma3(made, text):
    from transformers import Gemma3Config
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
    from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

    vision = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    ids = _ids(made)
    config = Gemma3Config(
        vision_config=vision,
        text_config=text | {"sliding_window": 32},
        image_token_id=ids["image_token"],
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
        mm_tokens_per_image=4,
    )
    images = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    processor = Gemma3Processor(images, made, image_seq_length=4, chat_template=made.chat_template)
    return config, processor


def _qwen_text(text):
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    return text | {"rope_parameters": rope}


def _qwen_tokens(made) -> dict[str, int]:
    ids = _ids(made)
    return {
        "image_token_id": ids["image_token"],
        "video_token_id": ids["video_token"],
        "vision_start_token_id": ids["vision_bos_token"],
        "vision_end_token_id": ids["vision_eos_token"],
    }


def _qwen(made, text, config_class, processor_class, **vision):
    """A Qwen that sees: its three generations differ in their classes and vision towers."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    usual = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 8}
    config = config_class(
        vision_config=usual | vision, text_config=_qwen_text(text), **_qwen_tokens(made)
    )
    size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    images = Qwen2VLImageProcessorPil(patch_size=8, size=size)
    processor = without_videos(processor_class)(
        images, made, NoVideos(), chat_template=made.chat_template
    )
    return config, processor


def qwen2_vl(made, text):
    from transformers import Qwen2VLConfig
    from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor

    return _qwen(made, text, Qwen2VLConfig, Qwen2VLProcessor, embed_dim=32)


def qwen2_5_vl(made, text):
    from transformers import Qwen2_5_VLConfig
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor

    vision = {
        "intermediate_size": 32,
        "out_hidden_size": 32,
        "window_size": 32,
        "fullatt_block_indexes": [1],
    }
    return _qwen(made, text, Qwen2_5_VLConfig, Qwen2_5_VLProcessor, **vision)


QWEN3_VISION = {
    "intermediate_size": 32,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}


def qwen3_vl(made, text):
    from transformers import Qwen3VLConfig
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    return _qwen(made, text, Qwen3VLConfig, Qwen3VLProcessor, **QWEN3_VISION)


def qwen3_vl_moe(made, text):
    """A mixture of experts that sees, whose files hold experts transposed."""
    from transformers import Qwen3VLMoeConfig
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    experts = {"moe_intermediate_size": 24, "num_local_experts": 6, "num_experts_per_tok": 2}
    return _qwen(made, text | experts, Qwen3VLMoeConfig, Qwen3VLProcessor, **QWEN3_VISION)


def smolvlm(made, text):
    from transformers import SmolVLMConfig
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
    from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor

    vision = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    config = SmolVLMConfig(
        vision_config=vision,
        text_config={"model_type": "llama", **text},
        image_token_id=_ids(made)["image_token"],
        scale_factor=2,
        pad_token_id=0,
    )
    edge = {"longest_edge": 16}
    images = SmolVLMImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False)
    processor = without_videos(SmolVLMProcessor)(
        images, made, NoVideos(), image_seq_len=4, chat_template=made.chat_template
    )
    return config, processor


def internvl(made, text):
    from transformers import InternVLConfig
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
        GotOcr2ImageProcessorPil,
    )
    from transformers.models.internvl.processing_internvl import InternVLProcessor

    vision = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": [16, 16],
        "patch_size": [4, 4],
    }
    config = InternVLConfig(
        vision_config=vision,
        text_config={"model_type": "qwen2", **text},
        image_token_id=_ids(made)["context_image_token"],
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    images = GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}, max_patches=2)
    processor = without_videos(InternVLProcessor)(
        images, made, NoVideos(), image_seq_length=4, chat_template=made.chat_template
    )
    return config, processor


def gemma4(made, text):
    from transformers import Gemma4Config
    from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
    from transformers.models.gemma4.processing_gemma4 import Gemma4Processor

    vision = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "patch_size": 4,
        "pooling_kernel_size": 3,
        "position_embedding_size": 64,
    }
    own = {
        "sliding_window": 32,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": text["vocab_size"],
        "global_head_dim": 8,
    }
    config = Gemma4Config(
        vision_config=vision,
        text_config=text | own,
        audio_config=None,
        image_token_id=_ids(made)["image_token"],
        boi_token_id=_ids(made)["boi_token"],
        eoi_token_id=_ids(made)["eoi_token"],
        video_token_id=_ids(made)["video_token"],
        vision_soft_tokens_per_image=70,
    )
    images = Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70)
    processor = without_videos(Gemma4Processor)(
        Gemma4AudioFeatureExtractor(),
        images,
        made,
        NoVideos(),
        image_seq_length=70,
        chat_template=made.chat_template,
    )
    return config, processor


_VISION = "<|vision_start|><image><|vision_end|>"
FAMILIES = {
    "llava": (llava, _IMAGE),
    "gemma3": (gemma3, "<boi>"),
    "gemma4": (gemma4, _IMAGE),
    "qwen2_vl": (qwen2_vl, _VISION),
    "qwen2_5_vl": (qwen2_5_vl, _VISION),
    "qwen3_vl": (qwen3_vl, _VISION),
    "qwen3_vl_moe": (qwen3_vl_moe, _VISION),
    "smolvlm": (smolvlm, _IMAGE),
    "internvl": (internvl, _IMAGE),
}


def make(family: str, folder: Path, **config) -> Path:
    """Write a random model of `family` with its processor to `folder`."""
    from transformers import AutoModelForImageTextToText

    build, image = FAMILIES[family]
    made = tokenizer(image)
    settings, processor = build(made, _TEXT | config)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(settings)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    vars(processor).pop("video_processor", None)
    _saved(processor, folder)
    return folder


def _saved(processor, folder: Path) -> None:
    """Write the processor's files; transformers' own method wants all its parts."""
    processor.tokenizer.save_pretrained(folder)
    processor.to_json_file(folder / "processor_config.json")
    (folder / "chat_template.jinja").write_text(processor.chat_template)


def picture(color, size=(24, 20)):
    """A small image with a line across it."""
    from PIL import Image

    image = Image.new("RGB", size, color)
    for x in range(size[0] // 2):
        image.putpixel((x, x % size[1]), (10, 200, 30))
    return image


def seen_rows(count=8):
    """Rows with one image each, whose questions differ in length."""
    return [
        {
            "prompt": [{"role": "user", "content": " ".join(WORDS[: 2 + index % 3])}],
            "image": picture((30 * index, 250 - 30 * index, 90)),
        }
        for index in range(count)
    ]
