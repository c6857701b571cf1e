"""Lists the commands.

python -m gpt1_ds
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from gpt1_ds.base.errors import ConfigError, command, near
from gpt1_ds.base.options import Parser

ENTRY_POINT = "\ncli = command(main"
"""By this line a file is a command."""
IN_ORDER = (
    "download sample train_tokenizer build_shards verify_shards inspect_shards trace "
    "train finetune eval generate export report watch plan suite"
).split()
"""As they are used. Others follow."""


def main(argv: list[str]) -> None:
    parser = Parser(description="Lists the commands of the project.\n\n    python -m gpt1_ds")
    parser.add_argument("word", nargs="?", help="of a command: says how it is started")
    word = parser.parse_args(argv).word
    commands = dict(list_commands())
    if word is not None:
        names = {name.rpartition(".")[2]: name for name in commands}
        if word in names:
            raise ConfigError(f"{word}: start it as python -m {names[word]}")
        raise ConfigError(f"{word}: no command; {near(word, names)}")
    for name, does in commands.items():
        print(f"{name:25}  {does}")
    print(
        "\nStart one as `python -m NAME`, and train and finetune by `deepspeed`: its --help"
        "\nhas examples and every option. Installed, they are also gpt1-train and so on."
    )


def list_commands() -> Iterator[tuple[str, str]]:
    """Name and purpose of each command, from its docstring: importing them takes seconds."""
    root = Path(__file__).resolve().parents[1]
    files = [*(root / "data_prep").glob("*.py"), *(root / "gpt1_ds").glob("*.py")]
    places = {name: number for number, name in enumerate(IN_ORDER)}
    for path in sorted(files, key=lambda path: (places.get(path.stem, len(places)), path.stem)):
        text = path.read_text(encoding="utf-8")
        if ENTRY_POINT in text and path.stem != "__main__":
            about = ast.get_docstring(ast.parse(text)) or ""
            yield f"{path.parent.name}.{path.stem}", first_sentence(about)


def first_sentence(text: str) -> str:
    """The first line up to what explains it further."""
    return text.split("\n")[0].split(". ")[0].split("; ")[0].rstrip(".:")


cli = command(main, __name__)
