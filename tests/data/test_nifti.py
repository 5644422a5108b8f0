"""NIfTI collections: made-up ones in every layout, everything broken, and the real hippocampus."""

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from fl_sim.data import _load, load_dataset
from fl_sim.data.base import Dataset, Split
from fl_sim.data.sources import nifti, nifti_volumes
from fl_sim.data.sources.nifti import fit, split_volumes
from fl_sim.data.splits import HeldOutSettings, divide
from fl_sim.errors import FlSimError

SHAPE = (12, 14, 9)


def scan(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A made-up image [12, 14, 9] and its labels 0, 1, 2; slices 0 and 8 have none."""
    random = np.random.default_rng(number)
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[2:6, 3:8, 1:8] = 1
    labels[7:10, 2:5, 3:8] = 2
    image = random.integers(-1000, 2000, SHAPE, dtype=np.int16)
    image[0, 0, 0], image[-1, -1, -1] = -1000, 2000
    return image, labels


def write(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write a NIfTI file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def decathlon(root: Path, volumes: int = 6, folders: tuple[str, str] = ("imagesTr", "labelsTr")):
    """Write a collection in the Decathlon's layout into a folder and return that."""
    for number in range(volumes):
        image, labels = scan(number)
        write(root / folders[0] / f"case_{number:03d}.nii.gz", image)
        write(root / folders[1] / f"case_{number:03d}.nii.gz", labels)
    return root


def load(root: Path, name: str = "nifti", **settings: Any) -> Dataset:
    """Load afresh."""
    _load.cache_clear()
    if name == "nifti":
        settings = {"path": str(root), **settings}
    return load_dataset(name, {"size": 16, **settings}, root.parent)


def everything(dataset: Dataset) -> list[Split]:
    return [dataset.train, dataset.validation, dataset.test]


def slice_of(dataset: Dataset, patient: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """One slice of a volume and its mask, from whichever split has it."""
    for split in everything(dataset):
        rows = np.flatnonzero(split.patients == patient)
        if len(rows):
            return split.images[rows[number]], split.labels[rows[number]]
    raise AssertionError(patient)


def test_slices_masks_and_volumes(tmp_path: Path) -> None:
    dataset = load(decathlon(tmp_path / "set"))
    assert dataset.name == "set" and dataset.task.is_segmentation
    assert dataset.task.label_names == ("background", "label 1", "label 2")
    assert (dataset.size, dataset.channels) == (16, 1)
    assert [len(s) for s in everything(dataset)] == [4 * 7, 7, 7]  # 2 of 9 slices have no label
    names = [set(s.patients) for s in everything(dataset)]
    assert set.union(*names) == {f"case_{n:03d}" for n in range(6)}
    assert sum(map(len, names)) == 6
    for split in everything(dataset):
        assert isinstance(split.images, np.memmap) and isinstance(split.labels, np.memmap)
        assert split.labels.dtype == np.uint8 and split.labels.shape == split.images.shape[:3]
        assert split.labels.any(axis=(1, 2)).all()
    pixels, masks = dataset.test.tensors()
    assert pixels.shape == (7, 1, 16, 16) and masks.shape == (7, 16, 16)
    assert str(masks.dtype) == "torch.int64"


def test_pixels_are_min_max_of_the_whole_volume_upright_and_padded(tmp_path: Path) -> None:
    dataset = load(decathlon(tmp_path / "set"), min_foreground=0)
    image, labels = scan(4)
    for number in (0, 3, 8):
        pixels, mask = slice_of(dataset, "case_004", number)
        grey = np.rint((image[:, :, number] - -1000.0) / 3000 * 255)
        # Anterior, which is the end of the second axis, is above.
        upright = grey.T[::-1]
        assert np.array_equal(pixels[1:15, 2:14, 0], upright)
        assert np.array_equal(pixels[0, 2:14, 0], upright[0])  # the edge, repeated
        assert np.array_equal(pixels[1:15, 15, 0], upright[:, -1])
        assert np.array_equal(mask[1:15, 2:14], labels[:, :, number].T[::-1])
        assert mask[0].sum() == 0 and mask.sum() == labels[:, :, number].sum()


@pytest.mark.parametrize(("axis", "place"), [("sagittal", 0), ("coronal", 1), ("axial", 2)])
def test_axes(tmp_path: Path, axis: str, place: int) -> None:
    dataset = load(decathlon(tmp_path / "set"), axis=axis, min_foreground=0, size=14)
    _, labels = scan(2)
    assert sum(map(len, everything(dataset))) == 6 * SHAPE[place]
    _, mask = slice_of(dataset, "case_002", 4)
    assert mask.sum() == labels.take(4, axis=place).sum()


def test_neighbours_are_the_slices_below_and_above(tmp_path: Path) -> None:
    root = decathlon(tmp_path / "set")
    grey = load(root, min_foreground=0)
    three = load(root, min_foreground=0, neighbours=True)
    assert three.channels == 3
    for number, around in ((4, (3, 4, 5)), (0, (0, 0, 1)), (8, (7, 8, 8))):
        pixels, mask = slice_of(three, "case_001", number)
        for channel, other in enumerate(around):
            assert np.array_equal(
                pixels[..., channel], slice_of(grey, "case_001", other)[0][..., 0]
            )
        assert np.array_equal(mask, slice_of(grey, "case_001", number)[1])
    # A neighbour is there also where it has no label of its own.
    labelled = load(root, neighbours=True)
    assert np.array_equal(slice_of(labelled, "case_001", 0)[0], slice_of(three, "case_001", 1)[0])


def test_what_a_slice_needs_to_be_kept_and_merged_labels(tmp_path: Path) -> None:
    root = decathlon(tmp_path / "set")
    assert len(load(root, min_foreground=20).test) == 7
    assert len(load(root, min_foreground=21).test) == 5  # slices with both structures
    binary = load(root, binary=True)
    assert binary.task.label_names == ("background", "foreground")
    many = load(root)
    assert np.array_equal(binary.train.labels, np.asarray(many.train.labels) > 0)
    assert np.array_equal(binary.train.images, many.train.images)
    assert len(load(root, volumes=3).train) == 7
    with pytest.raises(FlSimError, match="has 99 labelled voxels; lower min_foreground"):
        load(root, min_foreground=99)


def test_orientation_is_that_of_the_header(tmp_path: Path) -> None:
    root = decathlon(tmp_path / "set")
    before = load(root)
    for number in range(6):
        image, labels = scan(number)
        # Stored as superior, left, posterior: axes in another order, two of them backwards.
        affine = np.zeros((4, 4))
        affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 1.0, -1.0, -1.0, 1.0
        for folder, values in (("imagesTr", image), ("labelsTr", labels)):
            turned = values.transpose(2, 0, 1)[:, ::-1, ::-1]
            write(root / folder / f"case_{number:03d}.nii.gz", turned, affine)
    after = load(root)
    for one, two in zip(everything(before), everything(after), strict=True):
        assert np.array_equal(one.images, two.images) and np.array_equal(one.labels, two.labels)


def test_types_scales_and_a_fourth_axis(tmp_path: Path) -> None:
    root = decathlon(tmp_path / "set")
    before = load(root)
    for number in range(6):
        image, labels = scan(number)
        content = nibabel.Nifti1Image(image, np.eye(4))
        content.header.set_slope_inter(0.5, 100)  # values mean 0.5 v + 100
        nibabel.save(content, root / "imagesTr" / f"case_{number:03d}.nii.gz")
        write(root / "labelsTr" / f"case_{number:03d}.nii.gz", labels.astype(np.float32))
    assert np.array_equal(load(root).train.images, before.train.images)
    assert np.array_equal(load(root).train.labels, before.train.labels)
    for number in range(6):
        image, labels = scan(number)
        four = np.stack([np.zeros_like(image), image], axis=-1).astype(np.float32)
        four[3, 3, 3, 1] = np.nan
        write(root / "imagesTr" / f"case_{number:03d}.nii.gz", four)
        write(root / "labelsTr" / f"case_{number:03d}.nii.gz", labels[..., None])
    names = {"modality": {"0": "T1", "1": "FLAIR"}, "labels": {"0": "nothing", "1": "a", "2": "b"}}
    (root / "dataset.json").write_text(json.dumps(names))
    flair = load(root, modality="flair")
    assert flair.task.label_names == ("nothing", "a", "b")
    assert [file.name for file in flair.files] == ["set (6 volumes with labels)", "dataset.json"]
    different = np.asarray(flair.train.images) != before.train.images
    assert 0 < different.sum() <= 4  # the voxel that is no number
    assert np.array_equal(load(root, modality="1").train.images, flair.train.images)
    assert not load(root).train.images.any()  # the first, which is empty
    with pytest.raises(FlSimError, match="no modality called 'flare'"):
        load(root, modality="flare")
    with pytest.raises(FlSimError, match=r"has 2 modalities, numbered from 0, and no 2\."):
        load(root, modality="2")


def test_percentiles_save_a_volume_from_one_bright_voxel(tmp_path: Path) -> None:
    root = decathlon(tmp_path / "set")
    for number in range(6):
        image, _ = scan(number)
        bright = image.astype(np.float32)
        bright[5, 5, 5] = 1e6
        write(root / "imagesTr" / f"case_{number:03d}.nii.gz", bright)
    assert np.median(load(root).train.images) <= 1
    assert np.median(load(root, percentiles=[1, 99]).train.images) > 100


def test_crop_and_resize() -> None:
    plane = np.zeros((40, 20), dtype=np.uint8)
    plane[10:30, 5:15] = 200
    cropped = fit(plane, 16, "crop")
    assert cropped.shape == (16, 16) and np.array_equal(cropped, np.rot90(plane)[2:18, 12:28])
    scaled = fit(plane, 16, "resize")
    assert scaled.shape == (16, 16)
    assert abs(int((scaled > 100).sum()) - 16 * 8 // 4) <= 4
    mask = fit((plane // 100).astype(np.uint8), 16, "resize", mask=True)
    assert set(np.unique(mask)) == {0, 2} and mask[:4].sum() == 0 and mask.sum() == 2 * 8 * 4
    assert fit(plane, 64, "resize").shape == (64, 64)  # smaller ones are not enlarged
    assert (fit(plane, 64, "crop") == 200).sum() == 200


def test_the_cache_is_reused_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = decathlon(tmp_path / "set")
    first = load(root)

    def never(*_: object) -> None:
        raise AssertionError("read a volume though the cache has it")

    monkeypatch.setattr(nifti_volumes, "read_volume", never)
    monkeypatch.setattr(nifti, "read_volume", never)
    monkeypatch.setattr(nifti, "read_labels", never)
    again = load(root)
    assert np.array_equal(again.train.images, first.train.images)
    assert again.files == first.files
    monkeypatch.undo()
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path / "cache"))
    image, _ = scan(99)
    write(root / "imagesTr" / "case_001.nii.gz", image)
    assert load(root).files != first.files
    assert not np.array_equal(
        slice_of(load(root), "case_001", 0)[0], slice_of(first, "case_001", 0)[0]
    )


def test_long_volumes_are_cut_over_several_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = decathlon(tmp_path / "set")
    whole = load(root)
    monkeypatch.setattr("fl_sim.data.cache._CHUNK", 5)
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path / "other"))
    parts = load(root)
    assert np.array_equal(parts.train.images, whole.train.images)
    assert np.array_equal(parts.train.labels, whole.train.labels)


def test_the_split_is_by_volume_and_follows_from_names_alone() -> None:
    names = [f"v{number}" for number in range(40)]
    parts = split_volumes(names)
    assert [len(parts[which]) for which in ("train", "validation", "test")] == [28, 6, 6]
    assert sorted(place for part in parts.values() for place in part) == list(range(40))
    chosen = {names[place] for place in parts["test"]}
    backwards = split_volumes(names[::-1])
    assert {names[::-1][place] for place in backwards["test"]} == chosen
    # Pinned: another order would put published test volumes into training.
    assert sorted(chosen) == ["v1", "v20", "v24", "v31", "v37", "v38"]
    with pytest.raises(FlSimError, match="There are 2 volumes"):
        split_volumes(["a", "b"])


def test_the_layout_of_lits(tmp_path: Path) -> None:
    root = tmp_path / "LiTS"
    for number in range(6):
        image, labels = scan(number)
        folder = root / f"batch {number % 2 + 1}"
        write(folder / f"volume-{number}.nii", image)
        write(root / "masks" / f"segmentation-{number}.nii.gz", labels)
    write(root / "test-volume-0.nii", scan(0)[0])
    dataset = load(root, "lits", binary=True)
    assert dataset.name == "lits" and dataset.task.label_names == ("background", "liver")
    assert load(root, "lits").task.label_names == ("background", "liver", "tumour")
    assert {name for s in everything(dataset) for name in s.patients} == {
        f"volume-{number}" for number in range(6)
    }
    (root / "masks" / "segmentation-3.nii.gz").unlink()
    with pytest.raises(FlSimError, match=r"volume-3\.nii has no label segmentation-3; add it"):
        load(root, "lits")
    with pytest.raises(FlSimError, match="have one modality; leave 'modality' out"):
        load(root, modality="ct")


def test_the_layout_of_brats(tmp_path: Path) -> None:
    root = tmp_path / "brats"
    for number in range(4):
        image, labels = scan(number)
        case = f"BraTS2021_{number:05d}"
        for kind, values in (("flair", image), ("t1", -image), ("seg", labels * 2)):  # 2 and 4
            write(root / case / f"{case}_{kind}.nii.gz", values)
    dataset = load(root, "brats")
    names = ("background", "necrotic core", "oedema", "enhancing tumour")
    assert dataset.task.label_names == names
    assert set(np.unique(dataset.train.labels)) == {0, 2, 3}
    binary = load(root, "brats", binary=True)
    assert binary.task.label_names == ("background", "whole tumour")
    assert set(np.unique(binary.train.labels)) == {0, 1}
    assert "BraTS2021_00002" in {n for s in everything(dataset) for n in s.patients}
    t1 = load(root, "brats", modality="t1")
    total = t1.train.images.astype(int) + dataset.train.images
    assert ((total == 255) | (total == 254) | (total == 256)).all()
    with pytest.raises(FlSimError, match="no modality called 'flare'"):
        load(root, modality="flare")
    (root / "BraTS2021_00001" / "BraTS2021_00001_seg.nii.gz").unlink()
    with pytest.raises(FlSimError, match=r"BraTS2021_00001_seg\.nii\.gz; add it"):
        load(root, "brats")


def test_plain_pairs_hidden_files_and_where_folders_are_sought(tmp_path: Path) -> None:
    root = decathlon(tmp_path / "data" / "hippocampus", folders=("images", "labels"))
    (root / "images" / "._case_000.nii.gz").write_bytes(b"companion")
    dataset = load_dataset("hippocampus", {"size": 16}, root.parent)
    assert dataset.task.label_names == ("background", "anterior", "posterior")
    _load.cache_clear()
    assert len(load_dataset("hippocampus", {"size": 16}, root).train) == len(dataset.train)
    relative = load_dataset("nifti", {"size": 16, "path": "hippocampus"}, root.parent)
    assert relative.name == "hippocampus"
    with pytest.raises(FlSimError, match="'hippocampus' is not in"):
        load_dataset("hippocampus", {}, tmp_path)
    with pytest.raises(FlSimError, match="'lits' needs a data root"):
        load_dataset("lits", {}, None)
    with pytest.raises(FlSimError, match="There is no folder nowhere"):
        load_dataset("nifti", {"path": "nowhere"}, tmp_path)


def test_missing_broken_and_unequal_files(tmp_path: Path) -> None:
    root = decathlon(tmp_path / "set")
    label = root / "labelsTr" / "case_002.nii.gz"
    content = label.read_bytes()
    whole = gzip.decompress(content)
    for broken in (content[: len(content) // 2], b"no volume", gzip.compress(whole[:200])):
        label.write_bytes(broken)
        with pytest.raises(FlSimError, match=r"labelsTr/case_002\.nii\.gz is broken"):
            load(root)
    write(label, scan(2)[1][:-1])
    with pytest.raises(FlSimError, match=r"the shape \(12, 14, 9\), but its label .*\(11, 14, 9\)"):
        load(root)
    write(label, scan(2)[1] + np.float32(0.5))
    with pytest.raises(FlSimError, match=r"has the value 0\.5; labels are whole numbers"):
        load(root)
    label.unlink()
    with pytest.raises(FlSimError, match=r"imagesTr/case_002\.nii\.gz has no label"):
        load(root)
    label.write_bytes(content)
    image = root / "imagesTr" / "case_003.nii.gz"
    image.write_bytes(image.read_bytes()[:400])
    with pytest.raises(FlSimError, match=r"imagesTr/case_003\.nii\.gz is broken"):
        load(root)
    write(image, np.full(SHAPE, np.nan, dtype=np.float32))
    with pytest.raises(FlSimError, match="no value is a number"):
        load(root)
    write(image, np.ones(SHAPE, dtype=np.float32))
    pixels, _ = slice_of(load(root), "case_003", 0)
    assert not pixels.any()  # nothing to see, but no error
    with pytest.raises(FlSimError, match=r"has no volumes: neither images/ and labels/"):
        load(root / "imagesTr")


def test_labels_without_a_meaning(tmp_path: Path) -> None:
    root = decathlon(tmp_path / "set")
    write(root / "labelsTr" / "case_005.nii.gz", scan(5)[1] * 3)
    assert load(root).task.label_names == ("background", *(f"label {n}" for n in (1, 2, 3, 6)))
    (root / "dataset.json").write_text('{"labels": {"0": "background", "1": "a", "2": "b"}}')
    with pytest.raises(FlSimError, match=r"case_005\.nii\.gz has the value 3, .* none of 0, 1, 2"):
        load(root)
    assert load(root, binary=True).task.outputs == 2
    (root / "dataset.json").write_text('{"labels": ["background", "a"]}')
    with pytest.raises(FlSimError, match="has 'labels' in another form"):
        load(root)
    (root / "dataset.json").write_text("{")
    with pytest.raises(FlSimError, match=r"dataset\.json is damaged"):
        load(root)


def test_bad_settings(tmp_path: Path) -> None:
    root = decathlon(tmp_path / "set")
    for settings, words in (
        ({"axis": "axail"}, "'axis' is 'axail'"),
        ({"percentiles": [99, 1]}, "give two between 0 and 100"),
        ({"neighbors": True}, "Did you mean 'neighbours'"),
        ({"volumes": 2}, "'volumes' is 2"),
    ):
        with pytest.raises(FlSimError, match=words):
            load(root, **settings)
    with pytest.raises(FlSimError, match="lacks the key 'path'"):
        load_dataset("nifti", {}, tmp_path)


def test_real_hippocampus(real_data: Path) -> None:
    _load.cache_clear()
    dataset = load_dataset("hippocampus", {}, real_data)
    assert dataset.task.label_names == ("background", "anterior", "posterior")
    assert [len(set(s.patients)) for s in everything(dataset)] == [42, 9, 9]
    assert set(np.unique(dataset.train.labels)) == {0, 1, 2}
    assert 0.01 < (np.asarray(dataset.train.labels) > 0).mean() < 0.1
    path = real_data / "hippocampus" / "labels" / "hippocampus_003.nii.gz"
    voxels = int((np.asarray(nibabel.nifti1.load(path).dataobj) == 2).sum())
    rows = [s for s in everything(dataset) if "hippocampus_003" in s.patients]
    own = rows[0].labels[rows[0].patients == "hippocampus_003"]
    assert int((own == 2).sum()) == voxels
    parts = divide(dataset, HeldOutSettings(images=50), 0)
    assert not set(parts.train.patients) & set(parts.public.patients)
    assert len(parts.held_out) == 50 and len(parts.public) > 50


def test_two_ranges_of_volumes_share_no_patient(tmp_path: Path) -> None:
    root = decathlon(tmp_path, volumes=6)
    ranges = [load(root, volumes=3), load(root, volumes=3, first_volume=3)]
    names = [
        {str(name) for part in (s.train, s.validation, s.test) for name in part.patients}
        for s in ranges
    ]
    assert len(names[0]) == len(names[1]) == 3
    assert not names[0] & names[1]
    with pytest.raises(FlSimError, match="one each"):
        load(root, first_volume=5)
