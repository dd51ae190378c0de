"""Every kind of source but databases: what was written is read, and bad input is a sentence."""

from __future__ import annotations

import base64
import io
import json
import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lorica.client.config.site import SiteConfig
from lorica.client.data.reading import read_records
from lorica.common.data import images as image_module
from lorica.common.errors import Code, LoricaError

TEXTS, LABELS, UNITS = ["a b", "näive", "x,\ny"], ["heart", "skin", "heart"], ["p", "q", "p"]
Read, Refused = Callable[..., Any], Callable[..., str]


def table() -> pa.Table:
    return pa.table({"text": TEXTS, "label": LABELS, "unit": UNITS, "more": [1.5, None, 2]})


def picture(path: Path, size: tuple[int, int] = (12, 8), colour: int = 7) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 0, 0)).save(path)


class TestColumnar:
    @pytest.mark.parametrize("name", ["d.parquet", "d.arrow", "d.feather", "stream.arrow", "parts"])
    def test_every_format_gives_the_records_that_were_written(
        self, name: str, tmp_path: Path, read: Read
    ) -> None:
        path = tmp_path / name
        if name == "d.parquet":
            pq.write_table(table(), path)
        elif name == "parts":
            path.mkdir()
            pq.write_table(table().slice(0, 2), path / "part-0.parquet")
            pq.write_table(table().slice(2), path / "part-1.parquet")
        else:
            make = pa.ipc.new_stream if name.startswith("stream") else pa.ipc.new_file
            with make(path, table().schema) as writer:
                writer.write_table(table())
        records = read(source=name, unit="unit")
        assert (list(records.texts), records.labels, records.units) == (TEXTS, LABELS, UNITS)

    def test_categories_and_numbers_become_text(self, tmp_path: Path, read: Read) -> None:
        content = {"text": pa.array(TEXTS).dictionary_encode(), "label": pa.array([3, 4, 3])}
        pq.write_table(pa.table(content), tmp_path / "d.parquet")
        records = read(source="d.parquet")
        assert (records.texts, records.labels) == (TEXTS, ["3", "4", "3"])

    def test_a_label_that_is_not_a_number_is_refused(
        self, tmp_path: Path, refused: Refused
    ) -> None:
        content = {"text": TEXTS, "label": [1.0, float("nan"), 2.0]}
        pq.write_table(pa.table(content), tmp_path / "d.parquet")
        assert "record 2" in refused(Code.DATA_MALFORMED, source="d.parquet")

    def test_damage_is_a_sentence(self, tmp_path: Path, refused: Refused) -> None:
        pq.write_table(table(), tmp_path / "d.parquet")
        whole = (tmp_path / "d.parquet").read_bytes()
        for number, content in enumerate(
            (whole[:-20], b"", b"PAR1" * 9, whole[:100] + whole[150:])
        ):
            path = tmp_path / f"{number}.parquet"
            path.write_bytes(content)
            assert "damaged" in refused(Code.DATA_MALFORMED, source=path.name)
        (tmp_path / "d.arrow").write_bytes(whole)
        refused(Code.DATA_MALFORMED, source="d.arrow")
        refused(Code.DATA_NOT_FOUND, source="none.parquet")
        assert "more" in refused(Code.DATA_COLUMN, source="d.parquet", label="diagnosis")

    def test_no_rows_and_other_than_utf8_and_bytes_are_refused(
        self, tmp_path: Path, refused: Refused
    ) -> None:
        pq.write_table(table().slice(0, 0), tmp_path / "none.parquet")
        assert "no records" in refused(Code.DATA_MALFORMED, source="none.parquet")
        wrong = pa.Array.from_buffers(
            pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], "<i4")), pa.py_buffer(b"\xff\xfe")]
        )
        pq.write_table(pa.table({"text": wrong, "label": ["x"]}), tmp_path / "w.parquet")
        refused(Code.DATA_ENCODING, source="w.parquet")


class TestDatasets:
    def test_a_saved_data_set_is_read_with_the_names_of_its_classes(
        self, tmp_path: Path, read: Read, refused: Refused
    ) -> None:
        import datasets

        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["h", "s"])}
        )
        part = datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 1, 0]}, features=features)
        datasets.DatasetDict({"train": part, "more": part.select([1])}).save_to_disk(tmp_path / "d")
        records = read(source="d")
        assert (records.texts, records.labels) == (TEXTS, ["h", "s", "h"])
        assert read(source="d", split="more").texts == TEXTS[1:2]
        assert "train, more" in refused(Code.DATA_NOT_FOUND, source="d", split="test")

    def test_a_hub_id_is_loaded_by_the_library(
        self, tmp_path: Path, read: Read, refused: Refused, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A local folder stands for the hub: the same call, no network."""
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        (tmp_path / "set").mkdir()
        pq.write_table(table(), tmp_path / "set" / "train.parquet")
        assert read(source=f"hub:{tmp_path / 'set'}").labels == LABELS
        with pytest.raises(Exception, match=r"LOR-3(01|20|04)"):
            read(source="hub:nobody/none-such")


class TestImages:
    def test_folders_are_labels_and_tables_name_files(self, tmp_path: Path, read: Read) -> None:
        for number, label in enumerate(LABELS):
            picture(tmp_path / "scans" / label / f"{number}.png", (600, 300), number)
        records = read(source="scans")
        assert sorted(records.labels) == sorted(LABELS)
        assert records.images[0].shape == (256, 512, 3)
        assert records.images[0].dtype == np.uint8
        assert len(set(records.texts)) == 3  # told apart by their pixels
        (tmp_path / "t.csv").write_text("file,label,who\nskin/1.png,x,p\nheart/0.png,y,q\n")
        named = read(source="scans", table="t.csv", unit="who", image_side=8)
        assert (named.labels, named.units) == (["x", "y"], ["p", "q"])
        assert [image[0, 0, 0] for image in named.images] == [1, 0]
        assert named.take([1]).images[0] is named.images[1]

    def test_bad_images_are_sentences(
        self, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "scans" / "heart" / "a.png"
        picture(path, (200, 200))
        whole = path.read_bytes()
        for content in (whole[:80], whole[:-60], b"", b"not an image"):
            path.write_bytes(content)
            assert "a.png" in refused(Code.DATA_IMAGE, source="scans")
        bomb = io.BytesIO()
        Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
        path.write_bytes(bomb.getvalue())
        assert len(bomb.getvalue()) < 100_000
        assert "50,000,000" in refused(Code.DATA_TOO_LARGE, source="scans")
        path.write_bytes(whole)
        monkeypatch.setattr(image_module, "FILE_BYTES", 100)
        refused(Code.DATA_TOO_LARGE, source="scans")

    def test_nothing_outside_the_folder_is_read(
        self, tmp_path: Path, read: Read, refused: Refused
    ) -> None:
        picture(tmp_path / "scans" / "heart" / "a.png")
        picture(tmp_path / "secret.png")
        for name in ("../secret.png", str(tmp_path / "secret.png")):
            (tmp_path / "t.csv").write_text(f"file,label\n{name},x\n")
            refused(Code.DATA_OUTSIDE, source="scans", table="t.csv")
        link = tmp_path / "scans" / "heart" / "b.png"
        link.symlink_to(tmp_path / "secret.png")
        refused(Code.DATA_OUTSIDE, source="scans")
        link.unlink()
        link.symlink_to(link)
        refused(Code.DATA_NOT_FOUND, source="scans")
        link.unlink()
        (tmp_path / "scans" / "loop").symlink_to(tmp_path / "scans")
        assert "symbolic link" in refused(Code.DATA_OUTSIDE, source="scans")
        (tmp_path / "scans" / "loop").unlink()
        assert read(source="scans").labels == ["heart"]
        picture(tmp_path / "scans" / "top.png")
        assert "no label" in refused(Code.DATA_MALFORMED, source="scans")


def dicom(path: Path, values: np.ndarray, **more: Any) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = more.pop("syntax", ExplicitVRLittleEndian)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.Rows, data.Columns = values.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 1
    data.PixelData = values.astype("<i2").tobytes()
    data["PixelData"].VR = "OW"
    for name, value in more.items():
        setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


class TestDicom:
    VALUES = np.arange(-1000, 1048, 32).reshape(8, 8)

    def test_rescale_and_window_are_pydicoms(self, tmp_path: Path, read: Read) -> None:
        """Reference: pydicom's modality LUT and windowing."""
        import pydicom
        from pydicom.pixels import apply_modality_lut, apply_windowing

        path = tmp_path / "scans" / "heart" / "a.dcm"
        more = {"RescaleSlope": 2, "RescaleIntercept": -24, "WindowCenter": 40, "WindowWidth": 400}
        dicom(path, self.VALUES, **more)
        records = read(source="scans")
        data = pydicom.dcmread(path)
        expected = apply_windowing(apply_modality_lut(data.pixel_array, data), data)
        low, high = expected.min(), expected.max()
        expected = (expected - low) / (high - low) * 255
        assert np.abs(records.images[0][..., 0] - expected).max() <= 1
        assert records.labels == ["heart"]
        whole = read(source="scans", window=[0, 1e6]).images[0]
        assert whole.std() < 2

    def test_inverse_grey_and_no_window(self, tmp_path: Path, read: Read) -> None:
        for name, kind in (("a", "MONOCHROME1"), ("b", "MONOCHROME2")):
            path = tmp_path / "scans" / "x" / f"{name}.dcm"
            dicom(path, self.VALUES, PhotometricInterpretation=kind)
        first, second = read(source="scans").images
        assert (first[0, 0, 0], first[-1, -1, 0]) == (255, 0)
        assert (first.astype(int) + second == 255).all()

    @pytest.mark.parametrize(
        ("bits", "values"), [(12, (960, 2880)), (10, (240, 720)), (16, (15_420, 46_260))]
    )
    def test_files_without_a_window_keep_their_grey_levels(
        self, bits: int, values: tuple[int, int], tmp_path: Path, read: Read
    ) -> None:
        """Dim and bright pictures of one shade each are 60 and 180 of 255, whatever their bits."""
        for name, value in zip("ab", values, strict=True):
            path = tmp_path / "scans" / "x" / f"{name}.dcm"
            stored = {"BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": 0}
            dicom(path, np.full((8, 8), value).astype(np.uint16).astype(np.int32), **stored)
        dim, bright = read(source="scans").images
        assert (abs(int(dim.mean()) - 60), abs(int(bright.mean()) - 180)) <= (1, 1)

    def test_colour_of_16_bits_does_not_wrap(self, tmp_path: Path, read: Read) -> None:
        values = np.full((8, 8, 3), (300, 30_000, 60_000), dtype="<u2")
        colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}
        more = {**colour, "PlanarConfiguration": 0, "PixelRepresentation": 0}
        path = tmp_path / "scans" / "x" / "a.dcm"
        dicom(path, values[..., 0], PixelData=values.tobytes(), **more)
        assert read(source="scans").images[0][0, 0].tolist() == [1, 117, 233]

    def test_bad_files_are_sentences(self, tmp_path: Path, refused: Refused) -> None:
        path = tmp_path / "scans" / "x" / "a.dcm"
        dicom(path, self.VALUES)
        whole = path.read_bytes()
        for content in (whole[:-40], whole[:200], b"", b"no DICOM" * 40):
            path.write_bytes(content)
            assert "a.dcm" in refused(Code.DATA_IMAGE, source="scans")
        dicom(path, self.VALUES, Rows=60_000, Columns=60_000)
        refused(Code.DATA_TOO_LARGE, source="scans")
        dicom(path, self.VALUES, NumberOfFrames=3)
        assert "3 frames" in refused(Code.DATA_IMAGE, source="scans")

    def test_a_deflated_bomb_is_refused_before_it_is_unpacked(
        self, tmp_path: Path, refused: Refused, read: Read
    ) -> None:
        from pydicom.uid import DeflatedExplicitVRLittleEndian as Deflated

        path = tmp_path / "scans" / "x" / "a.dcm"
        dicom(path, self.VALUES, syntax=Deflated)
        assert read(source="scans").images[0].shape == (8, 8, 3)
        content = path.read_bytes()
        header = 144 + int.from_bytes(content[140:144], "little")
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        piece = bytes(10_000_000)
        packed = b"".join(packer.compress(piece) for _ in range(30)) + packer.flush()
        path.write_bytes(content[:header] + packed)
        assert path.stat().st_size < 1_000_000
        refused(Code.DATA_TOO_LARGE, source="scans")


def note(number: int, text: str, **more: Any) -> dict[str, Any]:
    data = base64.b64encode(text.encode()).decode()
    return {
        "resourceType": "DocumentReference",
        "subject": {"reference": f"Patient/{number // 2}"},
        "context": {"encounter": [{"reference": f"Encounter/{number}"}]},
        "content": [{"attachment": {"contentType": "text/plain", "data": data}}],
    } | more


def condition(number: int, code: str) -> dict[str, Any]:
    codings = [{"system": "icd", "code": code}, {"system": "local", "code": f"L{code}"}]
    return {
        "resourceType": "Condition",
        "subject": {"reference": f"Patient/{number // 2}"},
        "encounter": {"reference": f"Encounter/{number}"},
        "code": {"coding": codings},
    }


class TestFhir:
    RESOURCES = [
        *(note(i, f"näive {i}") for i in range(4)),
        *(condition(i, f"I{i % 2}") for i in range(4)),
        {"resourceType": "Patient"},
    ]
    FHIR = {"system": "icd"}

    @pytest.mark.parametrize("form", ["d.ndjson", "bundle.json", "folder"])
    def test_texts_get_the_codes_of_their_encounter(
        self, form: str, tmp_path: Path, read: Read
    ) -> None:
        lines = [json.dumps(resource) for resource in self.RESOURCES]
        if form == "folder":
            (tmp_path / form).mkdir()
            (tmp_path / form / "a.ndjson").write_text("\n".join(lines[4:]) + "\n\n")
            (tmp_path / form / "b.ndjson").write_text("\n".join(lines[:4]))
        elif form == "d.ndjson":
            (tmp_path / form).write_text("\n".join(lines))
        else:
            entries = [{"resource": resource} for resource in self.RESOURCES]
            content = {"resourceType": "Bundle", "entry": entries}
            (tmp_path / form).write_text(json.dumps(content))
        records = read(source=form, unit="patient", fhir=self.FHIR)
        assert records.texts == [f"näive {i}" for i in range(4)]
        assert records.labels == ["I0", "I1", "I0", "I1"]
        assert records.units == ["Patient/0", "Patient/0", "Patient/1", "Patient/1"]

    def test_the_mapping_is_the_sites(self, tmp_path: Path, read: Read, refused: Refused) -> None:
        rows = [note(i, "t", type={"coding": [{"code": f"k{i}"}]}, description="d") for i in (0, 1)]
        (tmp_path / "d.ndjson").write_text("\n".join(map(json.dumps, rows)))
        fhir = {"label": "DocumentReference.type.coding.code", "link": "same"}
        fhir["text"] = "DocumentReference.description"
        records = read(source="d.ndjson", fhir=fhir)
        assert (records.texts, records.labels) == (["d", "d"], ["k0", "k1"])
        refused(Code.SITE_CONFIG, source="d.ndjson", fhir={"text": "subject.reference"})

    def test_faults_are_sentences_with_their_place(self, tmp_path: Path, refused: Refused) -> None:
        def of(*lines: str) -> dict[str, Any]:
            (tmp_path / "d.ndjson").write_text("\n".join(lines))
            return {"source": "d.ndjson", "fhir": self.FHIR}

        good = json.dumps(note(0, "t"))
        assert "line 2" in refused(Code.DATA_MALFORMED, **of(good, "{broken"))
        assert "line 1" in refused(Code.DATA_MALFORMED, **of('{"no": "resource"}'))
        two = [json.dumps(condition(0, code)) for code in ("I1", "I2")]
        assert "2 labels" in refused(Code.DATA_MALFORMED, **of(good, *two))
        refused(Code.DATA_MALFORMED, **of(good))  # no label
        one = json.dumps(condition(0, "I1"))
        elsewhere = note(0, "t", content=[{"attachment": {"url": "https://x"}}])
        assert "URL" in refused(Code.DATA_MALFORMED, **of(json.dumps(elsewhere), one))
        for data in ("!!!", base64.b64encode(b"\xff\xfe").decode()):
            wrong = note(0, "t", content=[{"attachment": {"data": data}}])
            code = Code.DATA_MALFORMED if data == "!!!" else Code.DATA_ENCODING
            refused(code, **of(json.dumps(wrong), one))


class TestFiles:
    def test_a_file_that_may_not_be_read(self) -> None:
        """As an ordinary user: root may read everything, so it becomes one for a moment."""
        owner = os.geteuid()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            folder.chmod(0o755)
            for path in ("d.csv", "d.parquet", "d.ndjson"):
                (folder / path).write_text("text,label\na,b\n")
                said = self._said(folder, path)  # loads what reading it needs
                assert "denied" not in said
                (folder / path).chmod(0)
            try:
                os.seteuid(owner or 65534)
                for path in ("d.csv", "d.parquet", "d.ndjson"):
                    said = self._said(folder, path)
                    assert "LOR-301" in said and "Permission denied" in said
            finally:
                os.seteuid(owner)

    @staticmethod
    def _said(folder: Path, source: str) -> str:
        data = {"source": source}
        config = SiteConfig.model_validate({"site": {"name": "n"}, "data": data})
        try:
            read_records(config, folder)
        except LoricaError as error:
            return str(error)
        return ""

    def test_tables_with_faults_name_the_line(self, tmp_path: Path, refused: Refused) -> None:
        (tmp_path / "r.csv").write_text("text,label\na,b\nc\n")
        assert "line 3" in refused(Code.DATA_MALFORMED, source="r.csv")
        (tmp_path / "j.jsonl").write_text('{"text":"a","label":"b"}\n{"text":\n')
        assert "line 2" in refused(Code.DATA_MALFORMED, source="j.jsonl")
        (tmp_path / "m.csv").write_bytes("text,label\nä,b\n".encode() + "ü,b\n".encode("latin1"))
        assert "0xfc" in refused(Code.DATA_ENCODING, source="m.csv")
        (tmp_path / "n.csv").write_text("text,label\n")
        refused(Code.DATA_MALFORMED, source="n.csv")

    def test_what_is_no_source_is_said(self, tmp_path: Path, refused: Refused) -> None:
        (tmp_path / "d.docx").write_bytes(b"x")
        assert ".parquet" in refused(Code.DATA_KIND, source="d.docx")
        (tmp_path / "loop.csv").symlink_to("loop.csv")
        refused(Code.DATA_NOT_FOUND, source="loop.csv")
        refused(Code.DATA_NOT_FOUND, source="none.csv")
        (tmp_path / "notes.rtf").write_text("text,label\na,b\n")
        refused(Code.DATA_KIND, source="notes.rtf")
