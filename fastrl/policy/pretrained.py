"""What a Hugging Face folder or hub id says about a model without its weights: read once and handed on."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from fastrl.config.schema import ModelConfig
from fastrl.policy.lora import base_path

# One of them holds a tokenizer's vocabulary; without any transformers makes up an empty tokenizer of the model's type.
VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json", "*.py")


@dataclass(frozen=True)
class Pretrained:
    """The model that `settings.path` names; the base model where that is a folder of adapters.

    Each part is read when it is first asked for, and never again. FileNotFoundError or ValueError where it cannot be.
    """

    settings: ModelConfig

    @cached_property
    def path(self) -> str:
        """A path that looks local must hold a model. Anything else is taken for a hub id, which is said."""
        path = base_path(self.settings.path)
        is_local = Path(path).exists() or path.startswith((".", "/", "~")) or path.count("/") > 1
        if is_local and not (Path(path).expanduser() / "config.json").is_file():
            is_run = (Path(path).expanduser() / "checkpoints").is_dir()
            needed = (
                f"a run's models lie in {path}/checkpoints" if is_run else "a Hugging Face folder or hub id is needed"
            )
            raise FileNotFoundError(f"model.path = '{path}': no config.json there; {needed}")
        if not is_local:
            print(f"model.path = '{path}' is no folder in {Path.cwd()}: taking it for a hub id", file=sys.stderr)
        return path

    @cached_property
    def architecture(self) -> PreTrainedConfig:
        """The model's config."""
        with one_message(f"the config of model.path = '{self.path}' cannot be read"):
            return AutoConfig.from_pretrained(self.path, trust_remote_code=self.settings.trust_remote_code)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """ValueError also for a tokenizer without an end-of-sequence token."""
        problem, folder = f"no tokenizer can be loaded from model.path = '{self.path}'", Path(self.path).expanduser()
        if folder.is_dir() and not any(path for pattern in VOCABULARIES for path in folder.glob(pattern)):
            raise ValueError(f"{problem}: it has none of {', '.join(VOCABULARIES)}")
        architecture = self.architecture  # its own message
        with one_message(problem):
            tokenizer = AutoTokenizer.from_pretrained(
                self.path, config=architecture, trust_remote_code=self.settings.trust_remote_code
            )
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of '{self.path}' has no eos_token: completions could never stop")
        return tokenizer

    @property
    def limits(self) -> dict[str, int]:
        """The longest sequence that the model was made for, in tokens, by a name; empty where its config names none."""
        context = getattr(self.architecture.get_text_config(), "max_position_embeddings", None)
        return {"the model's context": context} if context else {}

    def check_weight_files(self) -> None:
        """ValueError for a safetensors file of a local folder that is cut off or damaged. Reads headers alone."""
        for path in sorted(Path(self.path).expanduser().glob("*.safetensors")):
            try:
                with safe_open(path, "pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path} is damaged or incomplete: {error}") from error


@contextmanager
def one_message(what: str) -> Iterator[None]:
    """Whatever transformers and its parsers raise for a broken folder, as a ValueError of one line."""
    try:
        yield
    except Exception as error:  # it raises any type: OSError, ValueError, KeyError, TypeError, those of Rust parsers
        text = " ".join(str(error).split())
        raise ValueError(f"{what}: {text[:300] or type(error).__name__}") from error
