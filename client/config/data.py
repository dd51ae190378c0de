"""The section [data] of site.toml: where the private records are and what their columns mean."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from lorica.common.config import Positive, Section, Window

Path_ = Annotated[str, StringConstraints(pattern=r"^[A-Za-z]+(\.[A-Za-z]+)*$")]


def _by_name(value: Any) -> Any:
    """A list of names as a mapping of each to itself."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        if len(set(value)) < len(value):
            raise ValueError("names a column twice")
        return {name: name for name in value}
    return value


class FhirMapping(Section):
    """Which elements of FHIR resources become which column."""

    text: Path_ = "DocumentReference.content.attachment"
    label: Path_ = "Condition.code.coding.code"
    unit: Path_ = "subject.reference"
    link: Literal["encounter", "subject", "same"] = "encounter"
    system: str = ""


class SiteData(Section):
    """Where the private records are and which columns mean what."""

    source: str = Field(min_length=1)
    """Path of a file (CSV, TSV, text, JSON, JSONL, Parquet, Arrow, Feather, FHIR as .ndjson or
    .json) or of a folder (images, DICOM, Parquet, FHIR, a data set of Hugging Face `datasets`),
    from the folder that site.toml is in; "hub:ORG/NAME" for a data set of the Hugging Face hub; or
    a database as SQLAlchemy writes it, without a password:
    "postgresql+psycopg://reader@db.intern/clinic"."""
    kind: Literal[
        "",
        "csv",
        "tsv",
        "jsonl",
        "json",
        "txt",
        "parquet",
        "arrow",
        "images",
        "dataset",
        "hub",
        "sql",
        "fhir",
        "dicom",
        "packaged",
    ] = ""
    """Kind of the source; empty: told from the source."""
    text: str = "text"
    """Name of the column with the text."""
    label: str = "label"
    """Name of the column with the label."""
    unit: str = ""
    """Name of the column that says whose record it is; empty: every record is its own unit."""
    columns: Annotated[dict[str, str], BeforeValidator(_by_name)] = {}
    """Further columns that plans may read beside the text or the image, by name: ["age", "sex"];
    or, where plans call them otherwise, { "of the plan" = "local" }. No other column is kept."""
    missing_unit: Literal["refuse", "own"] = "refuse"
    """Records without a unit: "refuse" the data, or take each as its "own" unit."""
    classes: dict[str, str] = {}
    """What the plan calls the labels that are called otherwise here: { "local" = "of the plan" }.
    Empty: labels are taken as they are. Otherwise a plan of one label a record must have every
    name that is mapped to, whether or not a record has it: by which plans the site refuses a
    coordinator then learns nothing of the records' labels."""
    unmapped: Literal["refuse", "drop"] = "refuse"
    """Records whose label is neither in ``classes`` nor one that it maps to: "refuse" the data, or
    "drop" the records. Used when ``classes`` is not empty."""
    alike: Literal["refuse", "merge", "keep"] = "refuse"
    """Labels that only look alike (case, blanks, invisible characters, 1 and 1.0): "refuse" the
    data, "merge" them and take them for the plan's label that looks like them, or "keep" them
    apart. Used where every task that the site allows has one label a record."""
    changed: Literal["refuse", "accept"] = "refuse"
    """Records that are others than when the trainer was started last: "refuse" to start until
    `lorica site data accept` takes them, or "accept" every change, as of a database that grows.
    What was charged stays charged, for the new records as for the old."""
    duplicates: Literal["keep", "drop", "refuse"] = "keep"
    """Records that equal another in text, label and unit: "keep" them, "drop" all but one, or
    "refuse" the data. Equal records of different units always stay: dropping one because of
    another's would make two people's privacy hang together."""
    compare: Literal["exact", "normalised"] = "exact"
    """Texts are compared as they are ("exact"), or all texts are first brought to one form
    ("normalised": Unicode NFKC, runs of white space as one blank). Used unless ``duplicates`` is
    "keep"."""
    split: str = ""
    """Part of a data set that has parts; empty: "train"."""
    image: str = ""
    """Name of the column with the image, in sources that have one among others; folders of images
    and DICOM always do. Where there are images, the column with the text may be missing."""
    table: str = ""
    """Of a folder of images or DICOM: a CSV or TSV file that names files and labels; empty: every
    sub-folder's name is the label of what is in it."""
    file: str = "file"
    """Name of the column of ``table`` with the files' names, from the source's folder."""
    image_side: int = Field(256, ge=8, le=4096)
    """Images are made smaller until their shorter side has at most this many pixels."""
    window: Window = []
    """Of DICOM, and of images with more than 8 bits or fractions: centre and width of the window of
    values that becomes black to white, such as [40, 400]; empty: of DICOM the file's own, else from
    the least value to the greatest; of others their bits (docs/data.md)."""
    query: str = ""
    """Of a database: one SELECT whose columns are the text, the label and the unit."""
    password: Annotated[str, StringConstraints(pattern=r"^((env|file):.+)?$")] = ""
    """Of a database: "env:NAME" of a variable, or "file:PATH" of a file with permissions 0600;
    empty: none is sent. A password is never written in site.toml."""
    timeout_seconds: Positive = 600.0
    """Of a database: longest time for the query, seconds; the server is told."""
    cache: str = ""
    """Folder, from the one that site.toml is in, for what the frozen model makes of the records: it
    is computed once, found again after a restart, and need not fit in memory. It is as private as
    the records; its files are readable by the trainer's user alone. Empty: in memory only."""
    cache_gigabytes: Positive = 20.0
    """Most that the folder holds, 10^9 bytes; what was not used for longest goes first."""
    fhir: FhirMapping = FhirMapping()
    """Of FHIR: elements that become text, label and unit; ``link``: a label belongs to the texts
    of the same "encounter" or "subject", or to the resource itself ("same"); ``system``: only
    codes of this coding system, such as "http://hl7.org/fhir/sid/icd-10"."""

    @model_validator(mode="after")
    def _no_role_twice(self) -> SiteData:
        for key in ("text", "label", "unit", "image"):
            column = getattr(self, key)
            if column and column in self.columns.values():
                raise ValueError(f"data.columns names '{column}', which is the column data.{key}")
        return self
