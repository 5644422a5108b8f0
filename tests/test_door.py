"""What ``fl_sim`` itself exports."""

import doctest
import subprocess
import sys

import fl_sim


def test_the_example_of_the_documentation_holds() -> None:
    found = doctest.testmod(fl_sim)
    assert found.attempted > 8 and found.failed == 0


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'pandas', 'flwr', 'ray', 'pydantic'}"
    code = f"import sys, fl_sim; print(sorted({heavy} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_every_name_that_it_exports_is_there() -> None:
    assert set(fl_sim.__all__) == set(fl_sim._HOMES) <= set(dir(fl_sim))
    for name in fl_sim.__all__:
        assert getattr(fl_sim, name).__doc__
