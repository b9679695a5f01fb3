"""`--help` is enough to use the command, and comes at once."""

import json
import subprocess
import sys

import pytest

from onecard.gateway.cli import COMMANDS, main

HEAVY = ("torch", "transformers", "aiohttp", "rich", "yaml", "pydantic", "prometheus_client", "numpy")


@pytest.mark.parametrize("argv", [["--help"], ["serve", "--help"], ["chat", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    script = (
        "import json, sys\n"
        "from onecard.gateway.cli import main\n"
        "try:\n    main(sys.argv[2:])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "loaded = [name for name in json.loads(sys.argv[1]) if name in sys.modules]\n"
        "print(json.dumps(loaded), file=sys.stderr)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, json.dumps(HEAVY), *argv], capture_output=True, text=True, check=True
    )
    assert ran.stdout
    assert json.loads(ran.stderr) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"\n  onecard {command}" in capsys.readouterr().out


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"\n    {command}" in printed for command in COMMANDS)


def test_wrong_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["serv"])
    assert end.value.code == 2
    assert "serve" in capsys.readouterr().err


def test_python_dash_m_is_the_command() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "onecard", "--version"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith("onecard ")
