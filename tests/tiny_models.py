"""Tiny random models in real shapes, made in a moment and always the same.

They know vLLM's and transformers' file formats and nothing of this program.
"""

import json
from pathlib import Path
from typing import Any

_HIDDEN, _LAYERS, _HEADS, _KV_HEADS, _HEAD_DIM, _FFN = 64, 2, 4, 2, 32, 128  # 32: the least that CPU attention knows
_NUM_UNLIKELY = 3 + 256  # special tokens and bytes: texts are to be letters
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-" + "你好世界中国今天气很我们学习语言翻译文本"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('no such role: ' + message['role']) }}{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_seed_x(folder: Path) -> Path:
    """A random MistralForCausalLM as Seed-X is: BOS added, no chat template, sliding window 4096, eos `</s>` = 2."""
    specials = ["<unk>", "<s>", "</s>"]
    num_tokens = _write_tokenizer(folder, specials, bos="<s>", eos="</s>", adds_bos=True, chat_template=None)
    _write_weights(folder, num_tokens, bos_id=1, eos_id=2)
    return folder


def tiny_chat(folder: Path) -> Path:
    """The like with a ChatML template whose `<|im_start|>` is the BOS that the tokenizer does not add."""
    specials = ["<unk>", "<|im_start|>", "<|im_end|>"]
    num_tokens = _write_tokenizer(
        folder, specials, bos="<|im_start|>", eos="<|im_end|>", adds_bos=False, chat_template=CHAT_TEMPLATE
    )
    _write_weights(folder, num_tokens, bos_id=1, eos_id=2)
    return folder


def _write_tokenizer(
    folder: Path, specials: list[str], *, bos: str, eos: str, adds_bos: bool, chat_template: str | None
) -> int:
    """Writes a byte-fallback BPE as Llama's; the number of its tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
    from tokenizers.models import BPE

    folder.mkdir(parents=True, exist_ok=True)
    pieces = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *_LETTERS]
    merges = [("▁", letter) for letter in _LETTERS[:26]] + [
        ("t", "h"),
        ("th", "e"),
        ("i", "n"),
        ("今", "天"),
        ("你", "好"),
    ]
    pieces += [left + right for left, right in merges]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(special, special=True, normalized=False) for special in specials])
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # transformers 4 and 5 both know it
        "add_bos_token": adds_bos,
        "add_eos_token": False,
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    _write_json(folder / "tokenizer_config.json", config)
    return len(pieces)


def _write_weights(folder: Path, num_tokens: int, *, bos_id: int, eos_id: int) -> None:
    import torch
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(20)

    def matrix(rows: int, columns: int, scale: float = 0.15) -> Any:
        return torch.randn(rows, columns, generator=random) * scale

    head = matrix(num_tokens, _HIDDEN, 0.4)  # logits spread by about 3: greedy is stable, samples vary
    head[:_NUM_UNLIKELY] = 0.0
    weights = {
        "model.embed_tokens.weight": matrix(num_tokens, _HIDDEN, 1.0),
        "model.norm.weight": torch.ones(_HIDDEN),
        "lm_head.weight": head,
    }
    for layer in range(_LAYERS):
        shapes = {
            "self_attn.q_proj": (_HEADS * _HEAD_DIM, _HIDDEN),
            "self_attn.k_proj": (_KV_HEADS * _HEAD_DIM, _HIDDEN),
            "self_attn.v_proj": (_KV_HEADS * _HEAD_DIM, _HIDDEN),
            "self_attn.o_proj": (_HIDDEN, _HEADS * _HEAD_DIM),
            "mlp.gate_proj": (_FFN, _HIDDEN),
            "mlp.up_proj": (_FFN, _HIDDEN),
            "mlp.down_proj": (_HIDDEN, _FFN),
        }
        weights |= {f"model.layers.{layer}.{name}.weight": matrix(*shape) for name, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{norm}.weight"] = torch.ones(_HIDDEN)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": _HIDDEN,
        "intermediate_size": _FFN,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_DIM,
        "hidden_act": "silu",
        "vocab_size": num_tokens,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"bos_token_id": bos_id, "eos_token_id": eos_id})


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, ensure_ascii=False, indent=2), encoding="utf-8")
