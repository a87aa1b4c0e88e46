"""What the files of a submission hold, apart from rows: the form that its author fills in, and the review."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from siegebench import strictjson
from siegebench.cells import PROTOCOL, SCHEMA, digest
from siegebench.errors import ConfigError, did_you_mean, shortened
from siegebench.schema import Part, Sha256, Snake, Time
from siegebench.strictjson import Refused, first_fault

FORM, REVIEW, ROWS, SUITES = "submission.json", "review.json", "rows", "suites"
# licences under which everybody may use and change the rows and the code: SPDX identifiers
LICENCES = (
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC-BY-4.0", "CC0-1.0", "ISC", "MIT", "MIT-0",
    "Unlicense", "Zlib",
)  # fmt: skip
STATUSES = ("claimed", "smoke_checked", "reproduced")
Status = Literal["claimed", "smoke_checked", "reproduced"]
Agreement = Literal["equal", "within", "differs"]

M = TypeVar("M", bound=BaseModel)
LONGEST = 4000  # characters of any text, except packed outcomes
_MARKUP = re.compile(r"<\s*[A-Za-z/!?]|javascript:|data:text/html", re.IGNORECASE)
_BLANK = set(
    "\u115f\u1160\u2800\u3164\uffa0\u034f"
)  # letters and marks that nobody sees, although they count as printable
_MARKS = 3  # marks on one letter; Vietnamese has two, more than three cover the lines around
_HERE = re.compile(
    r"(?<![\w.:/])(?:/(?:home|root|Users|mnt|media|tmp|var|private|srv|opt|scratch|work)/|~/)|\b[A-Za-z]:\\"
)


def plain(text: str) -> str:
    """The text, if it is plain: visible, without markup and without a folder of somebody's machine.

    Raises:
        ValueError: what it has instead.
    """
    if not text.isprintable():
        raise ValueError(f"expected printable text on one line, found {shortened(text)}")
    if not _BLANK.isdisjoint(text):
        raise ValueError(f"expected text without invisible letters, found {ascii(text)[:80]}")
    if "m" * (_MARKS + 1) in "".join("m" if unicodedata.combining(c) else "." for c in text):
        raise ValueError(f"expected at most {_MARKS} marks on a letter, found {ascii(text)[:80]}")
    if _MARKUP.search(text):
        raise ValueError(f"expected plain text without HTML, found {shortened(text)}")
    if _HERE.search(text):
        raise ValueError(f"expected no folder of a machine, found {shortened(text)}")
    return text


def _trimmed(text: str) -> str:
    if text.strip() != text:
        raise ValueError(f"expected text without blanks at its ends, found {shortened(text)}")
    return text


def _licence(text: str) -> str:
    if text not in LICENCES:
        near = did_you_mean(text[:40], LICENCES)
        raise ValueError(f"expected the SPDX identifier of a permissive licence, found {shortened(text)}. {near}")
    return text


def _address(text: str) -> str:
    if "://" in text and not re.fullmatch(r"https://[A-Za-z0-9.-]+(/[A-Za-z0-9._~/?=&%+#-]*)?", text):
        raise ValueError(f"expected a citation or an https address, found {shortened(text)}")
    return text


Line = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(plain), AfterValidator(_trimmed)]
Paragraph = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(plain)]
Name = Annotated[Snake, Field(max_length=60)]
File = Annotated[
    str, Field(pattern=r"^(rows/[A-Za-z0-9_-][A-Za-z0-9._-]{0,120}\.json|suites/[a-z][a-z0-9_]{0,60}\.yaml)$")
]
Commit = Annotated[str, Field(pattern=r"^([0-9a-f]{40}(\+dirty)?)?$")]


class Form(Part):
    """What the author says.

    Attributes:
        name, track: also the names of the folder and of the one around it.
        who: the authors of the submission.
        licence: of the rows and of the code of the method.
        method: what it does, in a sentence or two.
        paper: a citation or an https address; may be empty.
        commit: of the checkout that computed the rows, if it was one.
        files: the sha256 of every row and suite.
    """

    form_schema: Annotated[int, Field(alias="schema", ge=SCHEMA, le=SCHEMA)]
    protocol: int
    name: Name
    track: Name
    who: Line
    licence: Annotated[str, AfterValidator(_licence)]
    method: Paragraph
    paper: Annotated[str, Field(max_length=300), AfterValidator(plain), AfterValidator(_address)]
    commit: Commit
    files: Annotated[dict[File, Sha256], Field(min_length=1)]

    @model_validator(mode="after")
    def _current(self) -> Self:
        if self.protocol != PROTOCOL:
            raise Refused(f"expected {PROTOCOL}, the protocol of this version, found {self.protocol}", "protocol")
        return self

    @property
    def content(self) -> str:
        """The hash of the whole submission, the contents of its files included."""
        return digest(self.model_dump(by_alias=True))


class Again(Part):
    """A cell that was computed again."""

    key: Sha256
    agreed: Literal["equal", "within"]


class Review(Part):
    """What those who ran cells again say.

    Attributes:
        content: `Form.content` of what they checked.
        by: who ran them; not the author.
        salt: what the draw of the cells was seeded with, beside the content.
        cells: those that were computed again, all with agreement.
    """

    review_schema: Annotated[int, Field(alias="schema", ge=SCHEMA, le=SCHEMA)]
    protocol: int
    content: Sha256
    status: Literal["smoke_checked", "reproduced"]
    by: Line
    when: Time
    salt: Annotated[str, Field(max_length=200), AfterValidator(plain)]
    commit: Commit
    cells: Annotated[list[Again], Field(min_length=1)]


def read(kind: type[M], content: bytes) -> M:
    """The form or the review in the bytes of a file.

    Raises:
        ConfigError: one line, `field: what is wrong`.
    """
    try:
        value = strictjson.loads(content)
        if not isinstance(value, dict):
            raise Refused(f"expected a mapping, found {shortened(value)}")
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            loc, message = first_fault(error)
            raise Refused(message, *loc) from None
    except Refused as error:
        raise ConfigError(f"{dotted(error.loc)}{error}") from None


def dotted(loc: tuple[Any, ...]) -> str:
    """`metrics.robust_acc: ` for the path of a field; nothing for none."""
    steps = [str(step) if re.fullmatch(r"[A-Za-z0-9_@./-]{1,140}", str(step)) else shortened(step) for step in loc]
    return f"{'.'.join(steps)}: " if steps else ""


def sha256(content: bytes) -> str:
    """The hash of a file."""
    return hashlib.sha256(content).hexdigest()
