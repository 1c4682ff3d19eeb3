"""The study in one command: tune the paper's methods, choose, run the seeds, and keep figures and tables in docs/study.

    python sweeps/study.py [presets=[study_digits,...]] [tune=N] [steps=[tune,run,report]] [KEY=VALUE of launch.py ...]

For each preset the sweep NAME-tuning, in two stages of N trials in three rounds each, on seeds 100 and 101, which are
not reported: first M's recipe, by random sampling alone (tuning.random); then, at that recipe, each method's own keys
(tuning.METHOD). The best trials are the preset PRESET_tuned in conf=DIR (default ./conf), where other methods, e.g.
ablations, get the settings found for the first method. Then that preset's own seeds; reports of the paper's methods in
DOCS/NAME, of MAL's ablations in DOCS/NAME/ablations, of the choices on MAL's start in DOCS/NAME/choice. With tune=0,
and for the presets of this package where tune is not given, a preset is run as it is. Run it again after any
interruption: finished parts are not repeated. figures=DIR and docs=DIR (default docs/study) say where the reports go.
Exit status: 0 done; 1 a chain failed; 2 refused; 3 jobs are still in the queue, run the same command later; 130
stopped.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

try:
    from mal.packages import require

    require()
except ImportError as error:
    sys.exit(
        f"study.py: {error} in {sys.executable}: start .venv/bin/python (make setup), or activate your environment."
    )

import yaml

from mal.config import conf_folders, frozen
from mal.config.compose import PAPER_METHODS, Sweep, compose_sweep
from mal.config.schema import Chain, flat
from mal.files import run_command, write_atomic
from mal.run import folder as run_folder
from sweeps import launch

ROOT = Path(__file__).resolve().parent.parent
# Their recipes are in their files: they are run as they are, where tune=N does not say otherwise.
PRESETS = (
    "study_digits",
    "study_fashion",
    "study_fashion_imbalanced",
    "study_scenes",
    "study_fashion_scenes",
    "study_resnet18",
    "study_vgg16_bn",
)
TRIALS = 6  # of each method, of other presets
STEPS = ("tune", "run", "report")
TUNING_SEEDS = (100, 101)
TUNING_ROUNDS = 3  # of a chain's: enough to tell settings apart
EXIT_UNDER_WAY = 3
LEAD = "random"  # whose trials choose M's recipe, for every method
START = "mal_init_random"  # MAL's start, random's choice
KEPT = ("curves.csv", "rounds.csv", "report.md", "*.png", "tables/*.csv")

Settings = dict[str, Any]


@dataclass
class Options:
    """What was asked for. rest: overrides for launch.py."""

    presets: list[str] = field(default_factory=lambda: list(PRESETS))
    tune: int | None = None
    steps: list[str] = field(default_factory=lambda: list(STEPS))
    figures: Path = Path("figures")
    docs: Path = Path("docs/study")
    conf: Path = conf_folders.DEFAULT
    rest: list[str] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    if {"-h", "--help"} & set(arguments):
        print((__doc__ or "").strip())
        return 0
    try:
        options = parse(arguments)
        for preset in options.presets:
            if status := study(preset, options):
                return status
    except ValueError as error:
        print(f"study.py: {error}", file=sys.stderr)
        return launch.EXIT_USAGE
    return 0


def parse(arguments: Sequence[str]) -> Options:
    """The options of a command line; what is not one of this script is kept for launch.py."""
    options = Options()
    for argument in arguments:
        key, _, value = argument.partition("=")
        names = [name.strip() for name in value.strip("[]").split(",") if name.strip()]
        if key == "presets":
            options.presets = names
        elif key == "steps":
            if not names or set(names) - set(STEPS):
                raise ValueError(f"steps={value}: give some of {', '.join(STEPS)}, e.g. steps=[tune].")
            options.steps = names
        elif key == "tune":
            if not value.isdecimal():
                raise ValueError(f"tune={value} is not a number of trials for each method, e.g. tune=8; 0 for none.")
            options.tune = int(value)
        elif key in ("figures", "docs"):
            setattr(options, key, Path(value))
        elif key == "conf":
            options.conf = Path(value)
            options.rest.append(argument)
        else:
            options.rest.append(argument)
    return options


def study(preset: str, options: Options) -> int:
    """All steps of one preset; the exit status of the first that is not done."""
    untuned = compose_sweep([f"experiment={preset}", *options.rest])
    paper = PAPER_METHODS[untuned.chains[0].dataset.task]
    tuned = [method for method in paper if method in untuned.methods]
    trials = options.tune if options.tune is not None else 0 if preset in PRESETS else TRIALS
    if "tune" in options.steps and trials and (status := _tune(preset, trials, untuned, tuned, options)):
        return status
    overrides = [f"experiment={preset}{'_tuned' if trials else ''}", *options.rest]
    if "run" in options.steps and (status := _launch(overrides)):
        return status
    if "report" in options.steps:
        _report(untuned, tuned, options)
    return 0


def _tune(preset: str, count: int, untuned: Sweep, tuned: list[str], options: Options) -> int:
    """Both stages, and the preset of what they chose."""
    if "all" in untuned.tuning:
        raise ValueError(f"tuning.all of {preset}: put what is tried of every method's M under tuning.{LEAD}.")
    own = [method for method in tuned if method in untuned.tuning and method != LEAD]
    recipe: Settings = {}
    chosen: dict[str, Settings] = {}
    for methods in ([LEAD] if LEAD in untuned.tuning else [], own):
        if not methods:
            continue
        if status := _trials(preset, count, methods, recipe, untuned, options):
            return status
        chosen = yaml.safe_load((options.figures / f"{untuned.name}-tuning" / "chosen.yaml").read_text())["variants"]
        recipe = {key: value for key, value in chosen.get(LEAD, {}).items() if key != "method"}
    found = {method: chosen[method] for method in own}
    found |= {method: follow(method, untuned, found, tuned[0]) for method in untuned.methods if method not in found}
    variants = {name: {**keys, "method": untuned.variants[name]["method"]} for name, keys in found.items()}
    text = _preset(preset, count, recipe, variants)
    write_atomic(options.conf / "experiment" / f"{preset}_tuned.yaml", text.encode())
    return 0


def _trials(preset: str, count: int, methods: list[str], recipe: Settings, untuned: Sweep, options: Options) -> int:
    """The trials of one stage, run and read; recipe: M's keys, where they are chosen."""
    rest = [override for override in options.rest if not override.startswith(("methods=", "seeds=", "rounds="))]
    seeds, rounds = ",".join(map(str, TUNING_SEEDS)), min(TUNING_ROUNDS, untuned.chains[0].rounds)
    stage = [f"tune={count}", f"seeds=[{seeds}]", f"methods=[{','.join(methods)}]", f"rounds={rounds}"]
    stage += [f"{key}={value}" for key, value in recipe.items()]
    name = f"{untuned.name}-tuning"
    if status := _launch([f"experiment={preset}", *rest, *stage]):
        return status
    _analyse("tuning", f"runs={untuned.runs}", f"name={name}", f"out={options.figures}")
    return 0


def follow(method: str, untuned: Sweep, chosen: Mapping[str, Settings], lead: str) -> Settings:
    """What a method that is not tuned takes from those that are: of `lead` all but `method.`, of that with the same
    acquisition those; nothing in which it differs from them by its own definition, as an ablation does.
    """
    chains = {chain.method["name"]: chain for chain in untuned.chains}
    own = _values(chains[method])
    same = [name for name in chosen if chains[name].method["acquisition"] == own["method.acquisition"]]
    taken: Settings = {}
    for source, of_method in ((lead, False), *((name, True) for name in same[:1])):
        before = _values(chains[source])
        for key, value in chosen[source].items():
            if key.startswith("method.") == of_method and key != "method" and own.get(key) == before[key]:
                taken[key] = value
    return taken


def _values(chain: Chain) -> Settings:
    return flat(asdict(chain))


def _preset(preset: str, trials: int, recipe: Settings, variants: Mapping[str, Settings]) -> str:
    seeds = " and ".join(map(str, TUNING_SEEDS))
    head = f"""\
# @package _global_
# {preset}: M's recipe by {LEAD}, then each method's own keys, the best of {trials} trials on seeds {seeds}; written by
# sweeps/study.py.
defaults:
  - {preset}
  - _self_
"""
    sections: dict[str, Settings] = {}
    for key, value in recipe.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return head + str(yaml.safe_dump({**sections, "variants": dict(variants)}))


def _launch(overrides: list[str]) -> int:
    """launch.py, to the end of its chains; EXIT_UNDER_WAY where their jobs are not done yet."""
    if status := launch.main(overrides):
        return status
    sweep = compose_sweep(overrides)
    for chain in sweep.chains:
        folder = run_folder.chain_folder(sweep.runs, sweep.name, chain.method["name"], chain.seed)
        if run_folder.committed_rounds(folder) < frozen.load_chain(folder / run_folder.CONFIG).rounds:
            print(f"study.py: {folder} is not done yet; give the same command again when its jobs are.")
            return EXIT_UNDER_WAY
    return 0


def _report(untuned: Sweep, tuned: list[str], options: Options) -> None:
    for folder, (methods, baseline) in reports(untuned, tuned).items():
        out, runs = options.figures / folder, f"runs={untuned.runs}"
        chosen = f"methods=[{','.join(methods)}]", f"baseline={baseline}"
        _analyse("curves", runs, f"name={untuned.name}", f"out={out}", *chosen)
        copy(out / untuned.name, options.docs / untuned.name / ("" if folder == "tuned" else folder))
    copy(options.figures / f"{untuned.name}-tuning", options.docs / untuned.name, ("tuning.csv", "tuning.md"))


def reports(untuned: Sweep, tuned: list[str]) -> dict[str, tuple[list[str], str]]:
    """The methods of each report and what they are compared with, by folder.

    choice: those whose task model starts from MAL's F, against random choices on the same start, and random itself.
    """
    chains = {chain.method["name"]: chain for chain in untuned.chains}
    of_mal = [name for name in untuned.methods if chains[name].method["acquisition"] == "mal"]
    on_f = [name for name in untuned.methods if chains[name].task.init == "from_f" and name not in of_mal]
    found = {"tuned": (tuned or untuned.methods, "random")}
    ablations = [name for name in of_mal if name not in ("mal", START)]
    if ablations and "mal" in of_mal:
        found["ablations"] = (["mal", *ablations], "mal")
    if {"mal", START} <= set(of_mal):
        found["choice"] = (["mal", START, *on_f, "random"], START)
    return found


def copy(report: Path, docs: Path, kept: Sequence[str] = KEPT) -> None:
    """The small files of a report, in the same places; figures with a palette, a quarter of the size."""
    from PIL import Image

    for path in sorted(path for pattern in kept for path in report.glob(pattern)):
        target = docs / path.relative_to(report)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            with Image.open(path) as picture:
                # Maximum coverage: the few pixels of a method's marker keep their colour beside large areas.
                kept_picture = picture.convert("RGB").quantize(
                    256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
                )
            kept_picture.save(target, optimize=True)
        else:
            shutil.copyfile(path, target)


def _analyse(script: str, *arguments: str) -> None:
    if status := subprocess.run([sys.executable, ROOT / "analysis" / f"{script}.py", *arguments]).returncode:
        raise SystemExit(status)  # it has said why


if __name__ == "__main__":
    run_command(main)
