"""A folder of one's own: data sets, clusters, presets, variants of methods and backbones outside the package."""

import re
import shutil
from pathlib import Path

import pytest

from mal.config.compose import Sweep, compose_sweep
from mal.config.conf_folders import CONF
from mal.config.frozen import load_chain
from mal.run import folder as run_folder
from mal.run.code_copy import code_hash
from sweeps import completion, show
from sweeps.launch import help_text, main
from tests.chains import ROOT, SHORT, python

FILES = {
    "dataset/few_digits": """\
# @package _global_
defaults: [digits, override /backbone: thin_cnn, _self_]
dataset: {name: few_digits, pool: 300}
""",
    "backbone/thin_cnn": "name: small_cnn\nwidth: 4\nbottleneck: 16\ndiscriminator: 16\n",
    "method/mal_by_ranks": """\
# @package _global_
defaults: [mal, _self_]
method: {name: mal_by_ranks, query: rank_sum}
""",
    "cluster/our_gpus": (
        "defaults: [slurm, _self_]\nname: our_gpus\npartition: gpu\naccount: 00123\ntime: {default: 1:00:00}\n"
    ),
    "experiment/first_try": """\
# @package _global_
defaults: [override /dataset: few_digits, _self_]
name: first_try
methods: [mal_by_ranks, random]
""",
}
FIRST_TRY = ("experiment=first_try", "seeds=1")


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A folder with a file of each group, at a path that needs care."""
    folder = tmp_path / "it's ours, v=2"
    for name, text in FILES.items():
        write(folder, name, text)
    return folder


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def check_sweep(sweep: Sweep) -> None:
    assert (sweep.name, sweep.methods) == ("first_try", ["mal_by_ranks", "random"])
    chain = sweep.chains[0]
    assert (chain.dataset.name, chain.dataset.pool, chain.dataset.source) == ("few_digits", 300, "digits")
    assert (chain.backbone["name"], chain.backbone["width"]) == ("small_cnn", 4)
    assert (chain.method["acquisition"], chain.method["query"]) == ("mal", "rank_sum")


def test_a_file_of_each_group_is_found(conf: Path) -> None:
    check_sweep(compose_sweep([*FIRST_TRY, f"conf={conf}"]))
    cluster = compose_sweep([*FIRST_TRY, f"conf={conf}", "cluster=our_gpus"]).cluster
    assert (cluster["kind"], cluster["partition"], cluster["account"]) == ("slurm", "gpu", "00123")
    assert cluster["time"] == {"default": "1:00:00"}


def test_conf_in_the_folder_of_the_command_is_the_default(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf.rename(conf.with_name("conf"))
    monkeypatch.chdir(conf.parent)
    check_sweep(compose_sweep(FIRST_TRY))
    assert "few_digits" in help_text()


def test_a_conf_of_something_else_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "conf", "server/main", "port: 1")
    monkeypatch.chdir(tmp_path)
    assert compose_sweep(["dataset=digits", "seeds=1"]).name == "digits"


def test_help_lists_what_is_in_it(conf: Path) -> None:
    text = help_text([f"conf={conf}"])
    assert [name for path in FILES if (name := path.partition("/")[2]) not in text] == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dataset=few_digit", ("did you mean few_digits", "bdd100k", "few_digits")),
        ("methods=[mal_by_rank]", ("did you mean mal_by_ranks", "badge", "mal_by_ranks")),
        ("cluster=our_gpu", ("did you mean our_gpus", "slurm")),
        ("method.kwery=rank_sum", ("method.kwery", "did you mean method.query")),
        ("cluster=template", ("is a file to copy", "template.yaml", "v=2/cluster/MINE.yaml")),
    ],
)
def test_what_is_unknown_is_answered_with_the_names_of_both(conf: Path, override: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"unknown|none of|copy") as error:
        compose_sweep([f"conf={conf}", "seeds=1", override])
    assert [word for word in words if word not in str(error.value)] == []


def test_the_tab_key_and_show_config_know_them(conf: Path) -> None:
    given = [f"conf={conf}"]
    assert completion.offered("launch.py", "dataset=few", given) == ["dataset=few_digits"]
    assert completion.offered("launch.py", "methods=[mal_by", given) == ["methods=[mal_by_ranks"]
    assert completion.offered("launch.py", "dataset=few", []) == []
    text = show.show("mal_by_ranks", [*FIRST_TRY, *given])
    assert re.search(r"query: rank_sum +# conf/method/mal_by_ranks\.yaml", text)
    assert re.search(r"pool: 300 +# conf/dataset/few_digits\.yaml", text)


def test_a_template_is_copied_to_conf_where_there_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"template\.yaml to conf/cluster/MINE\.yaml"):
        compose_sweep(["cluster=template"])


@pytest.mark.parametrize("name", ["dataset/digits", "cluster/slurm", "method/mal", "backbone/resnet18"])
def test_one_name_for_two_files_is_refused(conf: Path, name: str) -> None:
    mine = write(conf, name, "name: mine\n")
    with pytest.raises(ValueError, match="would mean two files") as error:
        compose_sweep([*FIRST_TRY, f"conf={conf}"])
    assert str(mine) in str(error.value)
    assert str(CONF / f"{name}.yaml") in str(error.value)


WRONG = {
    "no such folder": (None, "conf=.* is not a folder"),
    "no group": ("datasets/mine", r"none of the folders .*datasets; did you mean dataset\?"),
    "not YAML": ("dataset/mine", r"not YAML: .*mine\.yaml"),
    "method not YAML": ("method/mine", r"mine\.yaml is not YAML"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_folder_that_is_none_is_refused(tmp_path: Path, case: str) -> None:
    name, words = WRONG[case]
    if name:
        write(tmp_path / "mine", name, "a: [\n")
    asked = (
        "dataset=mine" if name == "dataset/mine" else "methods=[mine]" if name == "method/mine" else "dataset=digits"
    )
    with pytest.raises(ValueError, match=words):
        compose_sweep([f"conf={tmp_path / 'mine'}", asked, "seeds=1", "rounds=1"])


@pytest.mark.parametrize(
    ("name", "text", "asked", "words"),
    [
        ("method/mine", "method: {query: rank_sum}\n", "methods=[mine]", "has no method.acquisition"),
        ("method/mine", "defaults: [mall, _self_]", "methods=[mine]", "'mall', which is not a method; did you mean ma"),
        ("method/mine", "- a list\n", "methods=[mine]", "has no sections"),
        ("method/mine", "defaults: [mal, _self_]\nmethod: {qwery: 1}\n", "methods=[mine]", "method.qwery is unknown"),
        ("backbone/mine", "name: mine\nwidth: 4\n", "backbone=mine", "backbone.name=mine: no file in mal/models"),
        ("experiment/mine", "# @package _global_\nconf: else\n", "experiment=mine", "give it on the command line"),
    ],
)
def test_a_file_that_cannot_work_is_named(tmp_path: Path, name: str, text: str, asked: str, words: str) -> None:
    write(tmp_path, name, f"# @package _global_\n{text}" if name.startswith("method") else text)
    with pytest.raises(ValueError, match=words):
        compose_sweep([f"conf={tmp_path}", asked, "seeds=1"])


def test_a_data_set_of_ones_own_can_be_prepared(conf: Path) -> None:
    from mal.data import prepare

    spec = prepare.read_request([f"conf={conf}", "dataset=few_digits"]).spec
    assert (spec.name, spec.pool) == ("few_digits", 300)
    with pytest.raises(ValueError, match="did you mean few_digits"):
        prepare.read_request([f"conf={conf}", "dataset=few_digit"])


def test_a_profile_without_a_kind_is_no_local_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "conf", "cluster/mine", "name: mine\npartition: gpu\n")
    for arguments in (["cluster=mine", f"conf={tmp_path / 'conf'}"], ["cluster=local", "cluster.kind=slrm"]):
        assert main([*arguments, f"runs={tmp_path / 'runs'}", "seeds=1"]) == 2
        assert "is unknown" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_chain_needs_nothing_of_it_once_it_is_launched(conf: Path, tmp_path: Path) -> None:
    """The folder is gone before the second round, and its files never were under the code's hash."""
    short = [*SHORT, "backbone=thin_cnn", *FIRST_TRY, "methods=[mal_by_ranks]", "cluster=local"]
    short = [each for each in short if not each.startswith("dataset=")]
    launched = python(ROOT / "sweeps" / "launch.py", *short, "rounds=1", f"conf={conf}", "runs=runs", cwd=tmp_path)
    assert launched.returncode == 0, launched.stderr
    assert "Curves: python analysis/curves.py name=first_try" in launched.stdout
    (chain,) = run_folder.chain_folders(tmp_path / "runs", "first_try")
    shutil.rmtree(conf)
    assert load_chain(chain / run_folder.CONFIG).dataset.name == "few_digits"
    (kept,) = (tmp_path / "runs" / "first_try" / "code").iterdir()
    assert kept.name == code_hash()
    again = python("-m", "mal.chain", chain, "--until", "1", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    shutil.rmtree(chain / "round-0")
    again = python("-m", "mal.chain", chain, "--until", "1", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert run_folder.committed_rounds(chain) == 1
