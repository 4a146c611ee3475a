"""Tests of python -m experiments.explain: its pictures show the maps of the methods; each mistake is one line."""

import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from experiments.explain import maps, overlays, pictures, subjects
from models.errors import UserError
from models.explain import cam, catalogue, names, receptive
from models.layers.endpoint import capture
from tests import pictures as tests_pictures
from tests import tiny
from train import loop, restore
from train.data import user_image, view
from train.data.decode import Decoder
from train.data.options import Options
from train.data.sources.folder import FolderSource
from train.setup import spec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run on canvases."""
    folder = tmp_path_factory.mktemp("runs") / "placed"
    loop.train(tiny.config(data__select="place(16)", data__select_test="place(16)"), folder)
    return folder


@pytest.fixture(scope="module")
def job(folder, tmp_path_factory):
    run, state = restore.load(folder)
    examples = subjects.from_split(run.feed.test, "test", [3, 8])
    images = run.feed.prepare_evaluation({"image": np.stack([subject.pixels for subject in examples])})["image"]
    return subjects.Job(
        run, jax.device_put(state.evaluation_variables()), examples, images, "test", tmp_path_factory.mktemp("pictures")
    )


def test_the_command_writes_pictures_and_says_what_the_network_says(folder, tmp_path):
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)).save(photo)
    methods = "grad_cam(endpoint=stage2)|guided_backprop|occlusion(size=8, stride=4)"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.explain",
            f"--workdir={folder}",
            f"--image={photo}",
            "--target=7,top1",
            f"--method={methods}",
            f"--out={tmp_path}/out",
        ],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "explain.json").read_text())
    assert [row["target"] for row in record["images"]] == ["7", record["images"][0]["top1"]]
    assert record["pictures"] == ["attributions.png", "occlusion.png"] and "photo.png" in done.stdout
    for name in record["pictures"]:
        with Image.open(tmp_path / "out" / name) as picture:
            assert np.ptp(np.asarray(picture.convert("L"))) > 100


def test_the_command_refuses_in_one_line(folder):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.explain", f"--workdir={folder}", "--method=grad_cm"],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "unknown method 'grad_cm'; did you mean 'grad_cam'" in done.stderr and "occlusion" in done.stderr


@pytest.mark.full
def test_mistakes_are_the_most_confident_errors(folder):
    run, state = restore.load(folder)
    variables = state.evaluation_variables()
    mistakes, remark = subjects.mistakes(run, variables, run.feed.test, count=5)
    examples = subjects.from_split(run.feed.test, "test", range(len(run.feed.test)))
    images = run.feed.prepare_evaluation({"image": np.stack([subject.pixels for subject in examples])})["image"]
    probabilities = np.asarray(jax.nn.softmax(run.task.model.apply(variables, images)))
    wrong = [i for i, subject in enumerate(examples) if probabilities[i].argmax() != subject.label]
    confidence = probabilities.max(1)
    assert set(mistakes) <= set(wrong) and len(mistakes) == 5 and not remark
    np.testing.assert_allclose(confidence[mistakes], sorted(confidence[wrong])[-1:-6:-1], rtol=1e-5)


def test_without_mistakes_the_least_confident_answers_are_shown():
    def predict(variables, batch):  # always right; the larger the number, the more confident
        return jax.nn.one_hot(batch["label"], 10) * batch["number"][:, None]

    right = SimpleNamespace(
        task=SimpleNamespace(predict=predict),
        feed=SimpleNamespace(prepare_evaluation=lambda batch: batch),
        images=SimpleNamespace(
            batches=lambda source: [
                {"label": np.arange(6), "number": np.float32([3, 9, 1, 7, 5, 8]), "mask": np.ones(6)}
            ]
        ),
    )
    chosen, remark = subjects.mistakes(right, {}, None, count=3)
    assert chosen == [2, 0, 4]
    assert "all 6 images correctly; these are the 3 that it is least confident about" in remark


def test_rows_equal_the_maps_of_the_methods(job, monkeypatch):
    drawn = []
    monkeypatch.setattr(overlays, "draw_rows", lambda figure, columns, rows: drawn.append((columns, rows)))
    pairs = subjects.targets("label, 4", job.subjects, job.classes)
    assert pairs == [(0, job.subjects[0].label), (0, 4), (1, job.subjects[1].label), (1, 4)]
    notes = pictures.attributions(
        job, spec.parse("method", "grad_cam(endpoint=stage2)|saliency|guided_grad_cam"), pairs
    )
    ((columns, rows),) = drawn
    assert [column.split("\n")[0] for column in columns] == ["Grad-CAM", "Saliency", "Guided Grad-CAM"]
    expected = cam.grad_cam(job.model, job.variables, job.images[1:], 4, endpoint="stage2")
    whole = np.asarray(jax.image.resize(expected.values, (1, 16, 16), "linear"))[0]
    np.testing.assert_allclose(rows[3].panels[0].values, whole, rtol=1e-4, atol=1e-6)
    assert [panel.over for panel in rows[0].panels] == [True, False, True] and rows[0].panels[2].signed
    probability = np.asarray(jax.nn.softmax(expected.logits))[0]
    assert notes[3]["target"] == "4" and notes[3]["probability"] == pytest.approx(float(probability[4]), rel=1e-4)
    assert notes[3]["label"] == str(job.subjects[1].label) and notes[3]["top1"] == str(probability.argmax())


@pytest.mark.full
def test_methods_with_pictures_of_their_own(job):
    pairs = [(0, -1), (1, 3)]
    for text in (
        "occlusion(size=16)",
        "occlusion",
        "receptive_field(endpoint='stage2/block0/conv1', channel=1, row=0)",
        "top_patches(endpoint=stage1, channels='0 2-3', k=4)",
    ):
        spec.resolve("method", spec.parse("method", text)[0], pictures.PICTURES, job, pairs)
        with Image.open(job.out / f"{text.partition('(')[0]}.png") as picture:
            assert min(picture.size) > 100 and np.ptp(np.asarray(picture.convert("L"))) > 100


def test_patches_are_cut_where_the_channel_is_highest(job):
    name, rows = pictures.patches_of(job, "stem", "1", 3)
    assert name == "stem" and len(rows) == 1
    field = receptive.theoretical(job.model, job.run.feed.inputs, "stem")
    activations = np.concatenate(
        [
            np.asarray(capture(job.model, job.variables, images)[1]["stem"])[mask > 0, ..., 1]
            for images, _, mask in subjects.batches(job)
        ]
    )  # [N, 16, 16] of the whole split
    order = np.argsort(-activations.reshape(len(activations), -1).max(1), kind="stable")[:3]
    patches = []
    for i in order:
        row, column = np.unravel_index(activations[i].argmax(), activations[i].shape)
        top, left, bottom, right = field.box(row, column)
        padded = np.pad(job.source.example(int(i))["image"], ((1, 1), (1, 1), (0, 0)), constant_values=128)
        patches.append(padded[top + 1 : bottom + 1, left + 1 : right + 1])
    np.testing.assert_allclose(rows[0][1][0], maps.montage(patches, 2), atol=1 / 255)


def test_files_are_preprocessed_like_the_images_of_the_run(job, tmp_path):
    pixels = np.zeros((64, 32), np.uint8)
    pixels[:32] = 255
    Image.fromarray(pixels).save(tmp_path / "half.png")
    (subject,) = subjects.from_files(job.run, [str(tmp_path / "half.png")])
    assert subject.pixels.shape == (16, 16, 1) and subject.label is None  # squeezed: nothing is cut off
    assert subject.pixels[:7].min() == 255 and subject.pixels[9:].max() == 0


def wide_photo(folder, left):
    """Writes a black picture, 64 pixels wide and 32 high, with a white square of 8 at `left` and 12 from the top."""
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[12:20, left : left + 8] = 255
    Image.fromarray(pixels).save(folder / "wide.png")
    return folder / "wide.png"


def center(canvas, axes, mask):
    """Returns the center of the masked pixels of a drawn figure, as shares of the axes' width and height."""
    box = axes.get_window_extent()
    rows, columns = np.nonzero(mask)
    rows = canvas.shape[0] - 1 - rows
    # Without the pixels at the edge, which the white page shines through
    inside = (columns > box.x0 + 1) & (columns < box.x1 - 1) & (rows > box.y0 + 1) & (rows < box.y1 - 1)
    assert inside.sum() > 20
    return (columns[inside].mean() - box.x0) / box.width, (box.y1 - rows[inside].mean()) / box.height


@pytest.mark.parametrize(("crop", "left"), [("none", 8), ("none", 44), ("resize", 24), ("resize", 36)])
def test_heat_lies_over_its_place_in_a_picture_of_any_aspect_ratio(crop, left, tmp_path):
    decoder = Decoder(crop, 16, 1, eval_crop=1.0)
    path = wide_photo(tmp_path, left)
    pixels, seen = user_image.of_file(decoder, (16, 16, 1), path), view.of_file(decoder, (16, 16, 1), path)
    subject = subjects.Subject(pixels, "wide", None, seen)
    assert seen.picture.shape == (32, 64, 3) and pixels.shape == (16, 16, 1)
    figure = Figure(figsize=(9, 3), layout="constrained", dpi=100)
    # The heat is what the network sees, so that it lies over the white square if it is drawn in its place
    panels = [overlays.Panel(pixels[..., 0] / 255.0), overlays.Panel(pixels[..., 0] / 255.0, over=False)]
    overlays.draw_rows(figure, ("heat", "alone"), [overlays.Row(pictures.drawn(subject), "wide", "", panels)])
    agg = FigureCanvasAgg(figure)
    agg.draw()
    canvas = np.asarray(agg.buffer_rgba())[..., :3].astype(int)
    own, heat, alone = figure.axes[:3]
    for axes in (own, heat, alone):
        box = axes.get_window_extent()
        assert box.width / box.height == pytest.approx(2, rel=0.02)
    place = ((left + 4) / 64, 0.5)
    white = canvas.min(-1) > 200
    assert center(canvas, own, white) == pytest.approx(place, abs=0.02)
    assert center(canvas, alone, white) == pytest.approx(place, abs=0.02)
    red = canvas[..., 0] - canvas[..., 2] > 60  # the upper end of the colors of heat is yellow; their lower end is blue
    assert center(canvas, heat, red) == pytest.approx(place, abs=0.02)


def test_boxes_and_squares_lie_over_their_place(tmp_path):
    decoder = Decoder("resize", 16, 1, eval_crop=1.0)  # the network sees the central half of the width
    seen = view.of_file(decoder, (16, 16, 1), wide_photo(tmp_path, 24))
    assert seen.box == (0.25, 0, 0.75, 1)
    picture = overlays.placed(seen.picture, seen.box, (16, 16))
    assert picture.extent == (-8.5, 23.5, 15.5, -0.5) and picture.aspect == 1
    figure = Figure()
    axes = figure.subplots()
    overlays.draw_image(axes, picture)
    overlays.draw_box(axes, (6, 4, 10, 8))  # of the network's pixels: 24 to 32 of 64, and 12 to 20 of 32
    corners = axes.transAxes.inverted().transform(axes.transData.transform(axes.patches[0].get_bbox().get_points()))
    np.testing.assert_allclose(corners[:, 0], [24 / 64, 32 / 64], atol=1e-6)
    np.testing.assert_allclose(sorted(1 - corners[:, 1]), [12 / 32, 20 / 32], atol=1e-6)
    squeezed = overlays.placed(seen.picture, (0, 0, 1, 1), (16, 16))
    assert squeezed.aspect == 0.5  # a pixel of the network is twice as wide as high


def test_photographs_of_a_split_are_drawn_whole(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(5):
            wide_photo(tmp_path, 24 + i).rename(tmp_path / name / f"{i}.png")
    source = FolderSource(
        str(tmp_path), "test", Options(f"folder:{tmp_path}", image_size=16, crop="resize", eval_crop=1.0)
    )
    first, second = subjects.from_split(source, "test", [0, 1])
    assert first.pixels.shape == (16, 16, 3) and first.view.picture.shape == (32, 64, 3)
    assert second.view.box == (0.25, 0, 0.75, 1)


def test_a_folder_stands_for_its_images_by_path(job, tmp_path):
    for name in ("b/2.png", "a/10.png", "a/2.png", "c.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 16), np.uint8)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "a" / "notes.txt").write_text("no image")
    taken = subjects.from_files(job.run, [str(tmp_path / "in"), str(tmp_path / "in" / "b" / "2.png")])
    assert [subject.name for subject in taken] == ["a/10.png", "a/2.png", "b/2.png", "c.png", "2.png"]
    assert taken[0].view.picture.shape == (8, 16, 3) and taken[0].view.box == (0, 0, 1, 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: there are no images in this folder"):
        subjects.from_files(job.run, [str(tmp_path / "empty")])


@pytest.mark.parametrize(
    "act, says",
    [
        (lambda job, tmp: subjects.from_files(job.run, ["nowhere.png"]), "nowhere.png: there is no such file"),
        (lambda job, tmp: subjects.from_files(job.run, [broken(tmp)]), "broken.png: it cannot be decoded"),
        (lambda job, tmp: subjects.from_split(job.source, "test", [360]), "--indices=360 is out of range: .* 0 to 359"),
        (
            lambda job, tmp: subjects.targets("label", [subjects.Subject(None, "x.png", None)], job.classes),
            "has no label",
        ),
        (lambda job, tmp: subjects.class_of("10", job.classes), "--target=10 is out of range: classes are 0 to 9"),
        (lambda job, tmp: subjects.class_of("cat", job.classes), "unknown --target 'cat'"),
        (lambda job, tmp: subjects.class_of("²", job.classes), "unknown --target '²'"),
        (lambda job, tmp: act(job, "receptive_field(row=-2)"), "row=-2 must be at least 0, or -1"),
        (lambda job, tmp: act(job, "occlusion(size=40)"), "size=40 x 40 is larger than the images of 16 x 16"),
        (lambda job, tmp: act(job, "occlusion(color=2.0)"), "color=2.0 must be from 0"),
        (lambda job, tmp: act(job, "occlusion(width=3)"), "unexpected keyword argument 'width'"),
        (
            lambda job, tmp: act(job, "top_patches(channels='0-99')"),
            "channels='0-99': must be numbers or ranges between 0 and",
        ),
        (lambda job, tmp: act(job, "top_patches(k=1000)"), "k=1000 must be 1 to 360"),
        (lambda job, tmp: act(job, "receptive_field(endpoint=stage9)"), "unknown endpoint 'stage9'.*stage1"),
        (lambda job, tmp: act(job, "receptive_field(row=99)"), "row=99 is out of range"),
        (
            lambda job, tmp: pictures.attributions(job, spec.parse("method", "grad_cam(endpoint=head)"), [(0, -1)]),
            "unknown endpoint with positions 'head'.*stage1",
        ),
        (
            lambda job, tmp: pictures.attributions(job, spec.parse("method", "attention_rollout"), [(0, -1)]),
            "attention_rollout needs a network whose attention layers see all tokens",
        ),
    ],
)
def test_mistakes(job, tmp_path, act, says):
    with pytest.raises(UserError, match=says):
        act(job, tmp_path)


def act(job, text):
    spec.resolve("method", spec.parse("method", text)[0], pictures.PICTURES, job, [(0, -1)])


def broken(folder):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return str(folder / "broken.png")


def test_a_map_of_zeros_has_no_heat():
    assert overlays.share_of_largest(np.zeros((4, 4))).max() == 0
    assert (overlays.around_gray(np.zeros((4, 4, 1))) == 0.5).all()
    values = np.linspace(-1, 1, 3 * 16).reshape(4, 4, 3)
    picture = overlays.around_gray(values)
    assert picture.min() == 0 and picture.max() == 1 and (np.diff(picture.ravel()) >= 0).all()


def test_every_method_has_the_name_of_its_paper():
    assert set(names.TITLES) == {*catalogue.METHODS, *pictures.PICTURES}
    assert not any("_" in title or title == name for name, title in names.TITLES.items())


def test_captions_say_what_is_true_predicted_and_explained():
    classes, probabilities = ("cat", "dog", "Egyptian Mau"), np.array([0.002, 0.7, 0.298])
    assert pictures.caption_of(classes, 0, 1, probabilities) == "true cat, predicted dog (70%)"
    assert pictures.caption_of(classes, None, 0, probabilities) == "predicted dog (70%)\nexplained: cat (<1%)"
    assert pictures.caption_of(classes, 2, 1, probabilities) == "true Egyptian Mau\npredicted dog (70%)"


@pytest.fixture(scope="module")
def drawn(job):
    """The figures of attributions and occlusion, of two images with two classes each."""
    pairs = subjects.targets("label, 4", job.subjects, job.classes)
    with tests_pictures.recorded() as figures:
        pictures.attributions(job, spec.parse("method", "grad_cam(endpoint=stage2)|saliency|guided_backprop"), pairs)
        spec.resolve("method", spec.parse("method", "occlusion(size=4, stride=4)")[0], pictures.PICTURES, job, pairs)
    return figures


def test_texts_do_not_collide_and_each_column_says_what_its_colors_mean(drawn):
    attributions, occlusion = drawn
    assert tests_pictures.collisions(attributions) == [] and tests_pictures.collisions(occlusion) == []
    texts = [text for text, _ in tests_pictures.texts(attributions)]
    assert texts.count("evidence") == texts.count("magnitude") == texts.count("gray is 0") == 1


def test_small_images_keep_crisp_pixels(drawn):
    assert {image.get_interpolation() for axes in drawn[0].axes[:16] for image in axes.images} == {"nearest"}


def test_both_maps_of_occlusion_share_the_colors_of_their_row(drawn):
    rows = np.array(drawn[1].axes[:16]).reshape(4, 4)
    limits = [{axes.collections[0].get_clim() for axes in row[1:3]} for row in rows]
    assert all(len(pair) == 1 for pair in limits)
    for ((low, high),) in limits:
        assert low == -high and maps.LEAST <= high <= maps.MOST
    largest = max(np.abs(axes.collections[0].get_array()).max() for axes in rows[0, 1:3])
    assert max(largest, maps.LEAST) == pytest.approx(next(iter(limits[0]))[1], rel=1e-5)


def test_changes_are_relative_to_the_image_without_a_square():
    activation, probability = maps.changes([[8.0, 12.0]], np.float32(10.0), [[0.1, 0.5]], np.float32(0.4))
    np.testing.assert_allclose(activation, [[-20, 20]], rtol=1e-5)
    np.testing.assert_allclose(probability, [[-30, 10]], rtol=1e-5)
    assert maps.limit_of(activation, probability) == pytest.approx(30, rel=1e-5)
    assert maps.limit_of(np.zeros(3)) == 5 and maps.limit_of(np.array([900.0])) == 100
