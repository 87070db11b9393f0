"""The report of an audit for a terminal."""

from fastrl.records.tables import markdown


def report_text(report: dict) -> str:
    """Tables of associations and interventions, and in one line what the reward moves with."""
    head = f"{report['num_completions']} completions of {report['num_groups']} problems"
    head += f", {report['num_faults']} left out because the verifier failed" if report["num_faults"] else ""
    found = moved_with(report)
    verdict = f"the reward moves with: {', '.join(found)}" if found else "nothing found that the reward moves with"
    parts = [f"{head}; correct by {report['reference']}", _associations(report), _interventions(report), verdict]
    return "\n".join(parts) + "\n"


def moved_with(report: dict) -> list[str]:
    """Names of features and interventions that the reward moves with."""
    features = [name for name, found in report["associations"].items() if found["equally_correct"]["moves"]]
    return features + [name for name, found in report["interventions"].items() if found["moves"]]


def _associations(report: dict) -> str:
    header = ["correlation of the reward with", "within problems", "at equal correctness", "problems with contrast"]
    rows = [
        [name, _r(found["within_problems"]), _r(found["equally_correct"]), str(found["equally_correct"]["num_groups"])]
        for name, found in report["associations"].items()
    ]
    return markdown([header, *rows])


def _interventions(report: dict) -> str:
    header = ["completions", "number", "faults", "rewards changed", "mean change", "largest", ""]
    rows = []
    for name, found in report["interventions"].items():
        shown = "–", "–", "–"
        if found["changed_share"] is not None:
            share = found["changed_share"]
            percent = f"{100 * share['mean']:.1f} % [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"
            shown = percent, _interval(found["mean_change"]), f"{found['largest']:.3g}"
        rows.append([name, str(found["num"]), str(found["num_faults"]), *shown, "*" if found["moves"] else ""])
    return markdown([header, *rows])


def _r(found: dict) -> str:
    if found["r"] is None:
        return "too little contrast"
    return _interval(found["r"]) + (" *" if found["moves"] else "")


def _interval(interval: dict) -> str:
    return "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**interval)
