"""docs/library.md followed to the letter: the script, then the commands that publish its run."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from local_hub import Hub, at_hub
from shell import follow

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "library.md").read_text()


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Path, str]:
    """Where the script ran, and what it printed."""
    folder = tmp_path_factory.mktemp("library")
    (script,) = re.findall(r"```python\n# library\.py\n(.*?)```", PAGE, re.DOTALL)
    (folder / "library.py").write_text(script)
    (folder / "models").symlink_to(ROOT / "models")
    return folder, follow("python library.py", folder, timeout=280)


def test_the_script_runs(ran):
    lines = r"^(?:step \d(?=: reward)|validation-\d+(?=: pass)|checkpoint of step \d|pass@32)"
    kinds = re.findall(lines, ran[1], re.MULTILINE)
    assert kinds[:3] == ["step 1", "step 2", "validation-000002"] and kinds[-2:] == ["checkpoint of step 4", "pass@32"]
    assert "step 5" not in kinds and kinds.count("validation-000004") == 1


def test_the_commands_publish_what_it_made(ran, hub):
    folder, _ = ran
    (commands,) = re.findall(r"```bash\n# after library\.py\n(.*?)```", PAGE, re.DOTALL)
    follow(commands, folder, timeout=280, **at_hub(hub))
    written, pushed = (
        ModelCard.load(folder / "runs" / "card.md").data,
        ModelCard(Hub.received["README.md"].decode()).data,
    )
    assert written.license == "apache-2.0" and {r.metric_name for r in written.eval_results} >= {"pass@1", "pass@8"}
    assert len(Hub.created) == 2 and "pass@256" in {r.metric_name for r in pushed.eval_results}
    best = folder / "runs/library/checkpoints/best/model.safetensors"
    assert Hub.received["model.safetensors"] == best.read_bytes()
