"""The settings file: one section for every deployment, one for each; a fault is one clear line."""

import configparser
import pathlib
import re
from typing import NoReturn

from wan_tpu_deploy.errors import DeployError

SHARED_SECTION = "all"
NAME = re.compile(r"[a-z]([a-z0-9-]{0,48}[a-z0-9])?")
"""What a deployment may be called, for Google to take it as the name of a TPU."""


def read_section(path: pathlib.Path, name: str) -> tuple[dict[str, str], str]:
    """The section [all] and, over it, the one of this deployment.

    Returns:
        Its values, none of them empty, and a note for people where only others have a section.

    Raises:
        DeployError: the file cannot be read or meant; one line, with the file's name.
    """
    parser = configparser.ConfigParser(
        default_section=SHARED_SECTION,
        interpolation=None,
        inline_comment_prefixes=(";", "#"),
    )
    text = _read_text(path)
    try:
        parser.read_string(text)
    except configparser.Error as error:
        _refuse(path, error)
    _check_sections(path, parser.sections(), name)
    section = parser[name] if parser.has_section(name) else parser[SHARED_SECTION]
    for key, value in section.items():
        if "\n" in value:
            raise DeployError(
                f"{path}: the line after {key} begins with a space and so belongs to {key}; "
                "begin each KEY = VALUE at the start of its line"
            )
    note = ""
    if parser.sections() and not parser.has_section(name):
        others = ", ".join(f"[{other}]" for other in parser.sections())
        note = f"{path} has no section [{name}], only {others}"
    return {key: value for key, value in section.items() if value}, note


def _read_text(path: pathlib.Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DeployError(f"there is no settings file {path}; see deploy/example.ini") from None
    except OSError as error:
        raise DeployError(f"the settings file {path} cannot be read: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DeployError(f"{path} is not UTF-8 text (line {line}): save it as UTF-8") from None
    if "\0" in text:
        raise DeployError(f"{path} is not UTF-8 text, but perhaps UTF-16: save it as UTF-8")
    return text


def _refuse(path: pathlib.Path, error: configparser.Error) -> NoReturn:
    """Raises DeployError with the line and what is wrong there."""
    if isinstance(error, configparser.DuplicateOptionError):
        text = f"line {error.lineno}: {error.option} is set twice in [{error.section}]"
    elif isinstance(error, configparser.DuplicateSectionError):
        text = f"line {error.lineno}: the section [{error.section}] is there twice"
    elif isinstance(error, configparser.MissingSectionHeaderError):
        text = (
            f"line {error.lineno} stands before any section: begin with [{SHARED_SECTION}], or "
            "with a deployment's name, such as [wan]"
        )
    elif isinstance(error, configparser.ParsingError) and error.errors:
        line, source = error.errors[0]
        text = f"line {line} is {source}; expected KEY = VALUE, such as zone = us-east5-b"
    else:
        text = " ".join(str(error).split())
    raise DeployError(f"{path} is not a settings file: {text}")


def _check_sections(path: pathlib.Path, sections: list[str], name: str) -> None:
    """Refuses a section that no deployment can have, which would go unused without a word."""
    for section in sections:
        if not NAME.fullmatch(section):
            meant = section.strip().lower()
            example = meant if NAME.fullmatch(meant) else name
            raise DeployError(
                f"{path}: the section [{section}] is no deployment's: names are lower-case "
                f"letters, digits and hyphens; write [{example}], or "
                f"[{SHARED_SECTION}] for every deployment"
            )
