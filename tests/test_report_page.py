"""The page of a run: its pictures, its colours, its script in a browser, names from outside."""

import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.load import load_config
from pipeline.config.settings import Config
from pipeline.data.images import write_image, write_indices
from pipeline.data.labels import load_label_space
from pipeline.files import write_json
from pipeline.scoring.metrics import METRICS, class_iou
from pipeline.yaml_files import write_yaml
from reports.charts import Chart, Series
from reports.colors import distinct_palette
from reports.pages import marked, readable
from reports.pictures import gallery
from reports.report import write_report
from reports.tables import read_evaluations
from tests.scored_run import (
    COUNTS,
    DEFAULT_ARMS,
    FRAMES,
    assert_self_contained,
    make_config,
    make_run,
    page_data,
    read_report,
    spread_out,
)

SWITCHES = (
    *["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
    *["--disable-background-networking", "--disable-component-update", "--disable-sync"],
)
HOSTILE = {
    "markup": "<img src=x onerror=alert(1)>",
    "path": "../../x",
    "formula": "=cmd()",
    "long": "long " * 60,
    "right to left": "\u202eשלום",
}


@pytest.fixture(scope="module")
def finished(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A run with its report in `report/`; its frames differ in their scores."""
    folder = tmp_path_factory.mktemp("finished")
    config = make_config(small_world, folder)
    run = make_run(config, folder / "run")
    for arm in config.arms:
        for seed in config.seeds:
            path = run / "evaluation" / arm / f"seed-{seed}" / "per_image.npz"
            with np.load(path) as arrays:
                names, counts = arrays["names"], arrays["counts"]
            # The first frame has all that is right, the last what is wrong.
            right = np.zeros_like(counts)
            for frame, share in enumerate((4, 3, 2, 1)):
                right[frame, [0, 1], [0, 1]] = share
                right[frame, [0, 1], [1, 0]] = 4 - share
            np.savez_compressed(path, names=names, counts=right)
    write_report(config, run, run / "report")
    return config, run


@pytest.mark.parametrize("name", ["cityscapes19", "camvid11", "synthia16", "idd7"])
def test_classes_are_told_apart(name: str) -> None:
    space = load_label_space(name)
    colors = distinct_palette(space)[: len(space.classes)].astype(int)
    own = space.palette[: len(space.classes)].astype(int)

    apart = np.abs(colors[:, None] - colors[None]).max(axis=-1)
    assert (apart + 255 * np.eye(len(colors))).min() >= 30
    assert (np.abs(colors).max(axis=1) >= 64).all()  # none looks like what is not scored
    # Few change, and car keeps the colour by which everybody knows it.
    assert (colors != own).any(axis=1).mean() < 0.3
    names = space.class_names
    deep = [names.index(name) for name in ("car", "truck", "bus", "train") if name in names]
    if len(deep) > 1:
        assert (apart + 255 * np.eye(len(colors)))[np.ix_(deep, deep)].min() >= 60
    if "car" in names:
        assert (colors[names.index("car")] == own[names.index("car")]).all()


def test_examples_and_scores_are_those_of_the_counts(finished: tuple[Config, Path]) -> None:
    config, run = finished
    space = load_label_space(config.label_space)
    evaluations = read_evaluations(run, config)

    found = gallery(run, config, space, evaluations, "adapted")

    names = [frame.name for frame in found.frames]
    assert len(names) == found.of == FRAMES
    assert found.arm == "adapted"
    assert found.examples["best"].name == names[0]
    assert found.examples["worst"].name == names[-1]
    frames = evaluations["oracle"][0].frames
    assert frames is not None
    for one, counts in zip(found.frames, frames.counts, strict=True):
        for key in ("pixel_accuracy", "mean_iou"):
            formula = METRICS[key].formula
            assert formula is not None
            due = float(formula(counts, space))
            assert one.scores["oracle"][key] == pytest.approx(due, abs=1e-4)
        by_class = [None if np.isnan(v) else pytest.approx(v, abs=1e-4) for v in class_iou(counts)]
        assert one.class_iou["oracle"] == by_class


def test_pictures_keep_to_their_budget(finished: tuple[Config, Path]) -> None:
    config, run = finished
    space, evaluations = load_label_space(config.label_space), read_evaluations(run, config)
    whole = gallery(run, config, space, evaluations, "adapted")
    room = sum(frame.bytes for frame in whole.frames) - 1

    few = gallery(run, config, space, evaluations, "adapted", budget=room)
    assert len(few.frames) == FRAMES - 1
    assert few.of == FRAMES
    assert sum(frame.bytes for frame in few.frames) <= room
    # The worst and the best are the last to be left out.
    assert {whole.frames[0].name, whole.frames[-1].name} <= {frame.name for frame in few.frames}
    assert len(gallery(run, config, space, evaluations, "adapted", budget=1).frames) == 1


def test_the_page_says_what_the_report_and_the_counts_say(finished: tuple[Config, Path]) -> None:
    config, run = finished
    report, data = read_report(run / "report"), page_data(run / "report")
    page = (run / "report/index.html").read_text()

    for arm, found in read_evaluations(run, config).items():
        assert data["confusion"][arm] == sum(one.table for one in found).tolist()
        for one in found[0].classes:
            value = report["class_iou"][arm][one]
            assert value is None or f'data-v="{value}"' in page
    for arm, scores in report["arms"].items():
        for key in ("pixel_accuracy", "mean_class_accuracy", "mean_iou"):
            mean, std = scores[key]["mean"], scores[key]["std"]
            assert f"{arm}: {100 * mean:.1f} ± {100 * std:.1f}%" in page
    assert report["headline"] in page.replace("&#39;", "'")


def test_charts_are_scaled_to_their_values() -> None:
    one = Series("one", "#000", [0, 50, 100], [1.0, None, 3.9], points=True)
    chart = Chart("title", [one])
    assert chart.y_range == (1, 4)
    assert [tick.text for tick in chart.y_ticks] == ["1", "1.5", "2", "2.5", "3", "3.5", "4"]
    assert [tick.place for tick in chart.x_labels] == [0, 20, 40, 60, 80, 100]
    assert chart.path(one) == "M0 1000M1000 33"  # nothing is drawn where nothing is known
    assert chart.marks(one) == "M0 1000h0M1000 33h0"
    flat = Chart("flat", [Series("one", "#000", [5], [0.0])])
    assert flat.path(flat.series[0]) == "M500 1000"
    assert Chart("flat", [Series("one", "#000", [5, 6], [0.1, 0.1])]).y_ticks
    steps = Series("one", "#000", [1, 10, 100], [0, 1, 2], [0.5, 0, 0.5])
    logarithmic = Chart("log", [steps], logarithmic=True, x_ticks=[1, 10, 100])
    assert [tick.place for tick in logarithmic.x_labels] == pytest.approx([0, 50, 100])


def test_no_name_turns_the_text_behind_it() -> None:
    assert readable("a\u202eb\\u2066c") == "abc"
    assert readable("\\\\u202e \udc80") == "\\\\u202e ?"


def test_code_is_set_as_code() -> None:
    assert marked("say `<b>`.") == "say <code>&lt;b&gt;</code>."
    assert marked("one ` alone <") == "one ` alone &lt;"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=list(SWITCHES))
        yield opened
        opened.close()


class Visit:
    """A page that is open, and what went wrong in it."""

    def __init__(self, browser: Any, report: Path, link: str = "", **options: Any) -> None:
        options = {"viewport": {"width": 1366, "height": 900}} | options
        self.page = browser.new_page(**options)
        self.page.set_default_timeout(120_000)  # a busy machine is no fault of the page
        self.problems: list[str] = []
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: self.problems.append(dialog.message))
        self.page.on("request", self._ask)
        self.page.goto((report / "index.html").as_uri() + link)
        self.page.wait_for_selector("#panes canvas")

    def _ask(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.problems.append(request.url)

    def text(self, selector: str) -> str:
        found: str = self.page.locator(selector).first.inner_text()
        return found

    def close(self) -> None:
        broken = "[...document.images].filter(image => image.src && !image.naturalWidth).length"
        self.page.evaluate("Promise.all([...document.images].map(i => i.src && i.decode()))")
        assert self.page.evaluate(broken) == 0
        self.page.close()
        assert self.problems == []


def test_the_browser_of_frames(finished: tuple[Config, Path], browser: Any) -> None:
    visit = Visit(browser, finished[1] / "report")
    page = visit.page
    names = [frame["name"] for frame in page_data(finished[1] / "report")["frames"]]
    # Lowest first, all arms beside each other.
    assert visit.text("#place") == f"1 of 4: {names[-1]}"
    assert page.locator("#panes figure").count() == 5
    page.locator("#panes").focus()
    page.keyboard.press("ArrowRight")
    assert visit.text("#place").startswith("2 of 4")
    page.keyboard.press("End")
    assert visit.text("#place") == f"4 of 4: {names[0]}"
    page.keyboard.press("+")
    widths = "all => all.map(one => one.getBoundingClientRect().width)"
    zoomed = page.locator("#panes canvas").evaluate_all(widths)
    assert max(zoomed) - min(zoomed) < 1
    assert zoomed[0] > 1.9 * page.locator(".pane").first.bounding_box()["width"]
    page.keyboard.press("0")
    page.locator(".pane").nth(2).hover()
    assert re.match(r"truth: .* · source_only: .* · adapted: .* · oracle: ", visit.text("#pixel"))
    # Errors: what the prediction and the truth do not have in common, and nothing else.
    page.select_option("#view", "errors")
    page.select_option("#measure", label="bicyclist")
    assert "adapted" in visit.text("#panes figure.chosen")
    page.select_option("#measure", "mean_iou")
    page.select_option("#than", "source_only")
    assert visit.text("#film button") == "0.0"
    page.get_by_role("button", name="median").click()
    link = page.evaluate("location.hash")
    assert "view=errors" in link
    assert "than=source_only" in link
    visit.close()

    other = Visit(browser, finished[1] / "report", link)
    assert other.page.input_value("#than") == "source_only"
    assert other.page.input_value("#view") == "errors"
    other.page.evaluate("link => { location.hash = link; }", f"arm=oracle&frame={names[1]}")
    other.page.wait_for_function("name => place.textContent.endsWith(name)", arg=names[1])
    assert other.page.input_value("#arm") == "oracle"
    other.page.evaluate("location.hash = '#frame=nothing&arm=%3Cb%3E'")
    other.close()


ERRORS_ARE_RIGHT = """async ([truth, prediction]) => {
    const read = async uri => {
        const image = new Image(); image.src = uri; await image.decode();
        const canvas = new OffscreenCanvas(image.width, image.height);
        const context = canvas.getContext("2d", { willReadFrequently: true });
        context.drawImage(image, 0, 0);
        return context.getImageData(0, 0, image.width, image.height).data;
    };
    const [real, seen] = await Promise.all([read(truth), read(prediction)]);
    const canvas = document.querySelectorAll("#panes canvas")[2];
    const shown = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    for (let k = 0; k < real.length; k += 4) {
        const same = [0, 1, 2].every(c => real[k + c] === seen[k + c]);
        const scored = [0, 1, 2].some(c => real[k + c]);
        const red = shown[k] === 255 && shown[k + 1] === 64;
        if (red !== (scored && !same)) return false;
    }
    return real.length === shown.length;
}"""


def test_the_map_of_errors(finished: tuple[Config, Path], browser: Any) -> None:
    visit = Visit(browser, finished[1] / "report", "#frame=x&view=errors")
    shown = visit.text("#place").split(": ")[1]
    frames = page_data(finished[1] / "report")["frames"]
    (frame,) = (frame for frame in frames if frame["name"] == shown)
    assert visit.page.evaluate(ERRORS_ARE_RIGHT, [frame["truth"], frame["predictions"][0]])
    visit.close()


def test_sliders_tables_matrices_and_charts(finished: tuple[Config, Path], browser: Any) -> None:
    visit = Visit(browser, finished[1] / "report")
    page = visit.page
    slider = page.locator(".slider").first
    slider.locator("input").fill("20")
    clip = slider.locator(".after").evaluate("image => getComputedStyle(image).clipPath")
    assert clip == "inset(0px 0px 0px 20%)"
    box = slider.locator("img").first.bounding_box()
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 5)
    assert abs(int(slider.locator("input").input_value()) - 75) <= 1

    table = page.locator("#classes table.sortable").first
    first = "table => table.tBodies[0].rows[0].cells[0].textContent"
    button = table.locator("th .sort").first
    order = []
    for _ in range(3):
        button.click()
        order.append(table.evaluate(first).split("\n")[0])
    assert order[0].startswith("<script>")
    assert order[1].startswith("road")
    assert order[2].startswith("road")  # as the report has it
    table.locator("th .sort").nth(2).focus()
    page.keyboard.press("Enter")
    assert table.locator('th[aria-sort="descending"]').count() == 1
    cells = table.locator("tbody tr td:nth-child(4)")
    values = cells.evaluate_all("all => all.map(cell => parseFloat(cell.dataset.v))")
    known = [value for value in values if value == value]
    assert known == sorted(known, reverse=True)

    matrix = page.locator("#matrix")
    counts = np.asarray(page_data(finished[1] / "report")["confusion"]["adapted"])
    cell = matrix.locator("tbody td").first
    assert cell.inner_text() == f"{100 * counts[0, 0] / counts[0].sum():.0f}"
    cell.hover()
    assert f"True road, seen as road: {counts[0, 0]} pixels" in visit.text("#matrix .read")
    cell.focus()
    page.keyboard.press("ArrowRight")
    assert "seen as <script>" in visit.text("#matrix .read")
    matrix.locator(".than").select_option("source_only")
    assert "with source_only" in matrix.locator("tbody td").first.get_attribute("title")

    axes = page.locator(".axes").first
    axes.focus()
    page.keyboard.press("ArrowLeft")
    axes.hover()
    assert re.search(r"step \d+", axes.locator(".tip").inner_text())
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#examples img").first.is_visible()
    assert not page.locator("#film").is_visible()
    assert not page.locator("#configuration pre").is_visible()
    visit.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_is_accessible(
    finished: tuple[Config, Path], browser: Any, scheme: str
) -> None:
    visit = Visit(browser, finished[1] / "report", color_scheme=scheme)
    for width in (390, 1366, 3840):
        visit.page.set_viewport_size({"width": width, "height": 900})
        wide = visit.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{wide} pixels in {width}"
    headings = visit.page.locator("h1, h2, h3, h4, h5")
    levels = headings.evaluate_all("all => all.map(heading => +heading.tagName[1])")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    visit.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    visit.page.set_viewport_size({"width": 390, "height": 900})
    found = axe.Axe().run(visit.page).response["violations"]
    grave = [one for one in found if one["impact"] in ("serious", "critical")]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in grave] == []
    visit.close()


def test_names_from_outside_do_no_harm(tmp_path: Path, browser: Any) -> None:
    names = list(HOSTILE.values())
    frames = [name.replace("/", "∕")[:120] for name in names]
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for i, name in enumerate(frames):
        write_image(tmp_path / "images" / f"{name}.png", np.full((8, 16, 3), 40 * i, np.uint8))
        label = np.array([[7, 11, 33, 26] * 4] * 8, np.uint8)
        write_indices(tmp_path / "labels" / f"{name}.png", label, None)
    kinds = ["road", "building", "bicycle", "car", "sky"]
    classes = [
        {"name": name, "names": [kind], "color": [9 * i, 9 * i, 9 * i]}
        for i, (name, kind) in enumerate(zip(names, kinds, strict=True))
    ]
    write_yaml(tmp_path / "space.yaml", {"name": HOSTILE["markup"], "classes": classes})
    data = {
        "name": f"data {HOSTILE['markup']}",
        "root": str(tmp_path),
        "images": "images/{frame}",
        "labels": "labels/{frame}",
        "values": {7: "road", 11: "building", 33: "bicycle", 26: "car"},
    }
    write_yaml(
        tmp_path / "config.yaml",
        {
            "name": "hostile",  # of other letters a configuration has none
            "label_space": "space.yaml",
            **dict.fromkeys(("source", "target", "test"), data),
            "arms": DEFAULT_ARMS,
            "seeds": [0],
        },
    )
    config = load_config(tmp_path / "config.yaml")
    counts = [[[9 - abs(i - j), 1][i != j] for j in range(5)] for i in range(5)]
    run = make_run(config, tmp_path / "run", {arm: [counts] for arm in DEFAULT_ARMS})

    write_report(config, run, run / "report")

    text = (run / "report/index.html").read_text()
    assert_self_contained(text)
    assert "<img src=x" not in text
    assert not re.search("\u202e|\\\\u202e", text)  # which would write numbers backwards
    visit = Visit(browser, run / "report")
    for width in (390, 1366):
        visit.page.set_viewport_size({"width": width, "height": 900})
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    assert HOSTILE["markup"] in visit.text("header p")
    assert HOSTILE["markup"] in visit.text("#matrix table")
    visit.page.locator("#film button").nth(1).click()
    offered = visit.page.locator("#measure optgroup option").all_inner_texts()
    assert [text.split() for text in offered] == [
        name.replace("\u202e", "").split() for name in names
    ]
    visit.close()


@pytest.mark.parametrize("arms", [["source_only"], ["adapted"], ["source_only", "adapted"]])
def test_incomplete_runs_have_a_page(small_world: Path, tmp_path: Path, arms: list[str]) -> None:
    kinds = {arm: DEFAULT_ARMS[arm] for arm in arms}
    config = make_config(small_world, tmp_path, arms=kinds, seeds=[0], evaluation={"pictures": 0})
    run = make_run(config, tmp_path / "run")
    for gone in ("cyclegan", "translated", "segmentation"):
        shutil.rmtree(run / gone)

    write_report(config, run, run / "report")

    page = (run / "report/index.html").read_text()
    assert "of the gap (" not in page
    shown = re.sub(r"<(script|pre).*?</\1>", "", page, flags=re.DOTALL)
    assert not re.search(r"\bNone\b|\bnan\b|Undefined", shown)
    assert {row["name"] for row in page_data(run / "report")["arms"]} == set(arms)


def test_what_the_gate_saw(small_world: Path, tmp_path: Path) -> None:
    config = make_config(small_world, tmp_path, translation={"method": "cyclegan", "gate": {}})
    run = make_run(config, tmp_path / "run")
    agreement = {"pixels": 100, "before": 0.9, "after": 0.6, "flipped": 0.375}
    frame = agreement | {"name": "a <b>", "lost": 0.7, "lost_class": "road"}
    matrix = [[60, 10, 0], [5, 25, 0], [0, 0, 0]]
    write_image(run / "gates/translated/worst/1.png", np.zeros((4, 12, 3), np.uint8))
    write_json(
        run / "gates/translated/drift.json",
        {
            "translation": "translated",
            "arm": "source_only",
            "frames": 8,
            "threshold": 0.5,
            "classes": load_label_space(config.label_space).class_names,
            "sheet": None,
            "before": matrix,
            "after": matrix[::-1],
            "flips": matrix,
            "ignored": 0.125,
            "overall": agreement,
            "by_class": {"road": agreement},
            "quarantined": [frame],
            "worst": [
                frame | {"picture": "gates/translated/worst/1.png"},
                frame | {"name": "gone", "picture": "gates/translated/worst/2.png"},
            ],
        },
    )

    write_report(config, run, run / "report")

    page = (run / "report/index.html").read_text()
    section = page[page.index("what the gate saw") :]
    section = section[: section.index("</section>")]
    assert "1 frame in quarantine: more than 50% of a class" in section
    assert "12.5% of the labelled pixels are ignored" in section
    assert "a &lt;b&gt;: 70% of road has flipped" in section
    assert "gone" not in section
    assert '"their translations": [[0, 0, 0], [5, 25, 0], [60, 10, 0]]' in section


def test_counts_spread_over_frames_are_all_there() -> None:
    table = COUNTS["adapted"][0]
    assert spread_out(table).sum(axis=0)[:, :-1].tolist() == table
