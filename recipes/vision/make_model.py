"""Make the model of shapes.yaml: a LLaVA of 175,000 parameters, trained for a minute.

  python recipes/vision/make_model.py [FOLDER]

It has a CLIP tower, a projector and a Llama. Nine in ten of the images that it learns from show a
circle or a square, so it sees the other shapes but rarely names them. Evolution strategies then
tune it on images of all shapes.
"""

import sys
from pathlib import Path

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.processing_llava import LlavaProcessor

sys.path.insert(0, str(Path(__file__).parents[2]))
from recipes.vision.shapes import COLORS, QUESTION, SHAPES, SIDE, rows

FOLDER = "models/shapes-llava"
STEPS = 600
SHARES = (0.6, 0.3, 0.05, 0.05)  # of the shapes
PATCH = 8
TEMPLATE = (
    "{% for m in messages %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image> {% else %}{{ p['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}answer {% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows the words of the task."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<eos>", "<unk>", "<image>", "answer", *QUESTION.split(), *COLORS, *SHAPES]
    inner = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    made.chat_template = TEMPLATE
    return made


def processor() -> LlavaProcessor:
    """Return what turns images and text into the model's inputs."""
    square = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square)
    return LlavaProcessor(
        images,
        tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def model(words: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """Return an untrained model."""
    torch.manual_seed(0)
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": PATCH,
        "projection_dim": 64,
    }
    text = {
        "model_type": "llama",
        "vocab_size": 32,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=words.convert_tokens_to_ids("<image>"),
            vision_feature_layer=-1,
            tie_word_embeddings=False,
        )
    )


def batch(reads: LlavaProcessor, step: int) -> dict[str, torch.Tensor]:
    """Return inputs of 64 new images with their answers, whose tokens alone are learned."""
    made = rows(64, 1000 + step, SHARES)
    places = "<image> " + QUESTION + " answer "
    inputs = reads(
        text=[f"{places}{row['answer']} <eos>" for row in made],
        images=[[row["image"]] for row in made],
        return_tensors="pt",
    )
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    return dict(inputs) | {"labels": labels}


def main(folder: Path, steps: int = STEPS) -> None:
    reads = processor()
    learner = model(reads.tokenizer)
    optimizer = torch.optim.AdamW(learner.parameters(), 1e-3)
    for step in range(steps):
        loss = learner(**batch(reads, step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    learner.generation_config.pad_token_id = 0
    learner.save_pretrained(folder)
    reads.save_pretrained(folder)
    print(f"wrote {folder}")


if __name__ == "__main__":
    main(Path((sys.argv[1:] or [FOLDER])[0]), *map(int, sys.argv[2:3]))
