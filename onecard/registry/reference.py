"""The tables of keys in docs/registry.md, made from the specs.

`python -m onecard.registry.reference docs/registry.md` writes them anew between their markers.
"""

import re
import sys
from pathlib import Path

from onecard.registry.shape import Key, as_yaml, example, is_spec, keys_of, wanted
from onecard.registry.spec import CardSpec, EngineSpec, ModelSpec, SamplingSpec, ServerSpec

_TABLES = {
    "server": ServerSpec,
    "cards": CardSpec,
    "models": ModelSpec,
    "sampling": SamplingSpec,
    "engine": EngineSpec,
}
_MARKED = re.compile(r"(<!-- keys of (\w+) -->\n)[^<]*(<!-- end -->)")


def with_tables(text: str) -> str:
    """`text` with the table of each `<!-- keys of X -->` ... `<!-- end -->` made anew."""
    return _MARKED.sub(lambda m: f"{m[1]}{table(_TABLES[m[2]])}\n{m[3]}", text)


def table(spec: type) -> str:
    """A Markdown table of the keys that a mapping for `spec` may have."""
    rows = ["| Key | Takes | Default | Example | Meaning |", "|---|---|---|---|---|"]
    rows += [_row(key) for key in keys_of(spec).values()]
    return "\n".join(rows)


def _row(key: Key) -> str:
    if is_spec(key.hint):
        cells = [f"`{key.name}`", "a mapping, see below", "", "", key.info.doc]
    else:
        default = "required" if key.info.required else f"`{as_yaml(key.default, key)}`"
        shown = " or ".join(f"`{value}`" for value in example(key).split(" or "))
        cells = [f"`{key.name}`", wanted(key), default, shown, key.info.doc]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> None:
    """Rewrites the tables of the file that the command line names."""
    path = Path(sys.argv[1])
    path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
