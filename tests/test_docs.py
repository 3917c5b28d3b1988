"""What the docs show runs: the pages' Python, and every example in a docstring."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import fusedrnn

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(fusedrnn.__path__, "fusedrnn.")
    if not m.name.endswith(("__main__", "libfusedrnn"))
    and not m.name.startswith(("fusedrnn.triton.whole", "fusedrnn.triton.step"))
)


@pytest.mark.parametrize("page", ["README.md", "docs/cells.md"])
def test_the_pages_code_runs(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert result.failed == 0


def test_every_public_name_has_an_example():
    for name in fusedrnn.__all__:
        thing = getattr(fusedrnn, name)
        if name not in ("gates", "init"):  # modules
            assert ">>>" in (thing.__doc__ or ""), name
    for name in ("identity_", "forget_bias_"):
        assert ">>>" in getattr(fusedrnn.init, name).__doc__
