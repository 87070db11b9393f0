"""docs/library.md followed to the letter: the script, then the command that writes the card of its run."""

import os
import re
import subprocess
import sys
from pathlib import Path

from huggingface_hub import ModelCard

from fastrl.cli import main

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_runs(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "library.md").read_text()
    (script,) = re.findall(r"```python\n# library\.py\n(.*?)```", page, re.DOTALL)
    (command,) = re.findall(r"```bash\n# after library\.py\nfastrl (.*?)\n```", page, re.DOTALL)
    (tmp_path / "library.py").write_text(script)
    (tmp_path / "models").symlink_to(ROOT / "models")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "library.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert result.returncode == 0, result.stderr
    lines = r"^(?:step \d(?=: reward)|validation-\d+(?=: pass)|checkpoint of step \d|pass@32)"
    kinds = re.findall(lines, result.stdout, re.MULTILINE)
    assert kinds[:3] == ["step 1", "step 2", "validation-000002"] and kinds[-2:] == ["checkpoint of step 4", "pass@32"]
    assert "step 5" not in kinds and kinds.count("validation-000004") == 1
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 0
    data = ModelCard.load(tmp_path / "runs" / "card.md").data
    assert data.license == "apache-2.0" and {r.metric_name for r in data.eval_results} >= {"pass@1", "pass@8"}
