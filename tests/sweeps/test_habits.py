"""What people type by habit is answered with the way of doing it here; completion; a Python without packages."""

import re
import subprocess
import sys
from dataclasses import MISSING, Field, fields
from pathlib import Path

import pytest

from mal.config.checks import CONF, choices
from mal.config.compose import compose_sweep
from mal.config.schema import Chain, Dataset, Minimax, Task
from sweeps import completion
from sweeps.launch import main
from sweeps.show import show
from tests.chains import ROOT, environment

HABITS = {
    "--cfg job": "show_config=METHOD",
    "--cfg=job": "show_config=METHOD",
    "--info": "show_config=METHOD",
    "-m": "methods=[mal,random]",
    "--multirun": "methods=[mal,random]",
    "--config-name=x": "experiment=NAME",
    "--dataset=digits": "e.g. dataset=digits",
    "--dry-run": "e.g. dry_run=true",
    "+keep_model=true": "Write keep_model=true",
    "++task.lr=1": "Write task.lr=1",
    "~methods": "Leave methods out",
    "hydra.run.dir=x": "runs=DIR",
    "methods=mal,random": "methods=[mal,random]",
    "methods=[mal;random]": "methods=[mal,random]",
    "methods=[mal random]": "methods=[mal,random]",
    "methods=choice(mal,random)": "methods=[mal,random]",
    "seeds=0,1,2": "seeds=[0,1,2]",
    "seeds=range(0,3)": "seeds=[0,1,2]",
    "seeds=0-2": "seeds=[0,1,2]",
    "methods=[mal,": "is not closed",
    "dataset=digits,cifar100": "Launch with dataset=digits, then with dataset=cifar100",
    "minimax.betas=0.9,0.999": "minimax.betas=[0.9,0.999]",
    "cluster.partition=a,b": "\"cluster.partition='a,b'\"",
    "task.lr=0.1,0.01": "'variants={mal_1:{method:mal,task.lr:0.1},mal_2:{method:mal,task.lr:0.01}}'",
    "methods=mal methods=random": "methods=[mal,random]",
    "task.lr = 0.1": "Write task.lr=0.1",
    "task.lr =0.1": "Write task.lr=0.1",
    "task.lr= 0.1": "Write task.lr=0.1",
    "lr=0.1": "did you mean task.lr",
    "task.lr=(1": "\"task.lr='(1'\"",
}


@pytest.mark.parametrize("typed", HABITS)
def test_a_habit_is_answered_in_one_line(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [typed] if "[" in typed else typed.split()
    assert main(arguments) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("launch.py: ")
    assert HABITS[typed] in line
    assert said.out == ""


def test_spaces_in_one_word_and_a_tilde_that_the_shell_left(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = environment(HOME=str(tmp_path))
        command = [sys.executable, "sweeps/launch.py", "seeds=1", "dry_run=true", *arguments]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)

    assert "Write task.lr=0.1" in run("task.lr = 0.1").stderr
    assert f"results  {tmp_path}/my runs/digits" in run("runs=~/my runs").stdout


def test_what_an_answer_suggests_is_taken() -> None:
    both = ["variants={mal_1:{method:mal,task.lr:0.1},mal_2:{method:mal,task.lr:0.01}}", "methods=[mal_1,mal_2]"]
    assert [chain.task.lr for chain in compose_sweep([*both, "seeds=1"]).chains] == [0.1, 0.01]
    assert compose_sweep(["cluster=slurm", "cluster.partition='a,b'"]).cluster["partition"] == "a,b"
    assert compose_sweep(["data=/a(b"]).chains[0].data == "/a(b"
    assert compose_sweep(["seeds=[0,1,2]", "methods=[mal,random]"]).seeds == [0, 1, 2]


def test_brackets_quotes_and_sections_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    kept = ["methods=['mal','random']", "variants={mal_1:{method:mal,task.lr:1}}", "minimax.betas=[0.9,0.99]"]
    assert main([*kept, "methods=[mal]"[:0] or "show_config=mal"]) == 0


# ------------------------------------------------------------------------- show_config


def sources(text: str) -> dict[str, tuple[str, str]]:
    """Dotted key -> (value, source) of what show_config prints."""
    found, path = {}, [""]
    for line in text.splitlines():
        if match := re.fullmatch(r"( *)(\w+):(.*?)(?:\s+# (.*))?", line):
            path = [*path[: len(match[1]) // 2], match[2]]
            found[".".join(path)] = match[3].strip(), match[4] or ""
    return found


def test_each_value_stands_with_where_it_comes_from() -> None:
    found = sources(show("mal", ["dataset=imagenet", "task.lr=0.2", "backbone=vgg16_bn"]))
    assert found["task.lr"] == ("0.2", "the command line")
    assert found["minimax.epochs"] == ("60.0", "conf/dataset/imagenet.yaml")
    assert found["task.init"] == ("from_f", "conf/method/mal.yaml")
    assert found["task.momentum"] == ("0.9", "conf/config.yaml")
    assert found["backbone.bottleneck"] == ("512", "conf/backbone/vgg16_bn.yaml")
    assert found["method.query"] == ("intersection", "conf/method/mal.yaml")
    preset = sources(show("coreset_f", ["experiment=study_digits"]))
    assert preset["task.init"] == ("from_f", "variants.coreset_f")
    small = sources(show("vaal_small", ["methods=[vaal_small]"]))
    assert small["method.width"][1] == "conf/method/vaal_small.yaml"
    assert small["method.beta"][1] == "conf/method/vaal.yaml"


SECTIONS = {"": Chain, "dataset.": Dataset, "minimax.": Minimax, "task.": Task}


def has_default(field: Field[object]) -> bool:
    return field.default is not MISSING


# Those whose files are to be named on the command line have no configuration without.
OWN = {"folder", "mask_folder", "webdataset", "own_features"}


@pytest.mark.parametrize("dataset", sorted(set(choices("dataset")) - OWN))
def test_every_value_of_every_dataset_has_a_source(dataset: str) -> None:
    chain = compose_sweep([f"dataset={dataset}"]).methods[0]
    found = sources(show(chain, [f"dataset={dataset}"]))
    whole = {key for key, (value, _) in found.items() if value}
    assert {key for key in whole if not found[key][1]} == set()
    left = {prefix + each.name for prefix, section in SECTIONS.items() for each in fields(section) if has_default(each)}
    assert {key for key in whole if found[key][1] == "its default in mal/config"} <= left


def test_an_unknown_method_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show_config=randm", "methods=[mal,random]"]) == 2
    assert "show_config=randm: the sweep has no such method; did you mean random?" in capsys.readouterr().err


# ------------------------------------------------------------------------- completion

OFFERS = {
    ("launch.py", "datas"): ["dataset.channels=", "dataset=", "dataset.root="],
    ("launch.py", "dataset=ima"): ["dataset=imagenet"],
    ("launch.py", "methods=[mal,ent"): ["methods=[mal,entropy"],
    ("launch.py", "experiment=figure4"): ["experiment=figure4"],
    ("launch.py", "task.init=f"): ["task.init=from_f"],
    ("launch.py", "keep_model="): ["keep_model=true", "keep_model=false"],
    ("launch.py", "method.q"): ["method.query="],
    ("status.py", "wa"): ["watch="],
}


@pytest.mark.parametrize(("script", "word"), OFFERS)
def test_keys_and_names_are_offered(script: str, word: str) -> None:
    offered = completion.offered(script, word, ["dataset=digits"])
    assert set(OFFERS[script, word]) <= set(offered)
    assert all(each.startswith(word) for each in offered)


def test_all_that_is_offered_is_a_key() -> None:
    offered = [word.rstrip("=") for word in completion.offered("launch.py", "", ["dataset=imagenet"])]
    assert len(offered) > 90
    known = sources(show("random", ["dataset=imagenet", "methods=[random]"]))
    known |= dict.fromkeys(re.findall(r"^(\w+): .*#", (CONF / "config.yaml").read_text(), re.M), ("", ""))
    unknown = {key for key in offered if key not in known and not key.startswith(("cluster.", "method."))}
    pretrained = {
        f"backbone.{key}" for key in ("weights", "weights_prefix", "freeze", "normalise")
    }  # where they are set
    assert unknown == {"show_config", "cluster", "experiment", *pretrained}


def test_bash_completes_the_words_of_a_command_line(tmp_path: Path) -> None:
    def tab(line: str) -> list[str]:
        commands = f"""source <("{sys.executable}" sweeps/launch.py completion=bash)
            compopt() {{ :; }}
            COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; _mal; printf '%s\\n' "${{COMPREPLY[@]}}" """
        ended = subprocess.run(
            ["bash", "-c", commands], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
        )
        return ended.stdout.split()

    assert tab(f"{sys.executable} sweeps/launch.py dataset=inat") == ["inaturalist2018"]  # as bash wants
    assert tab(f"{sys.executable} sweeps/launch.py dataset=imagenet method.qu") == ["method.query="]
    assert tab(f"{sys.executable} {ROOT}/sweeps/status.py wat") == ["watch="]
    assert tab("python analysis/other.py x") == []


# ------------------------------------------------------------------------- a Python without the packages

SCRIPTS = ["sweeps/launch.py", "sweeps/status.py", "sweeps/cancel.py", "sweeps/study.py", "sweeps/completion.py"]
SCRIPTS += [
    "sweeps/label.py",
    "sweeps/prune.py",
    "analysis/curves.py",
    "analysis/tuning.py",
    "-m mal.data.prepare",
    "-m slurm.local",
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_python_without_the_packages_says_so_in_one_line(script: str) -> None:
    bare = [sys.executable, "-S", *script.split(), "runs=somewhere"]  # -S: without site-packages
    env = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
    ended = subprocess.run(bare, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "No module named" in line
    assert sys.executable in line
    assert "make setup" in line
    assert ended.stdout == ""


def test_every_script_begins_so() -> None:
    scripts = {
        str(path.relative_to(ROOT))
        for folder in ("sweeps", "analysis")
        for path in (ROOT / folder).glob("*.py")
        if '__name__ == "__main__"' in path.read_text()
    }
    assert scripts == {script for script in SCRIPTS if not script.startswith("-m")}
