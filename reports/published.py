"""Results that others have published, for runs of the same data sets and protocol."""

from dataclasses import dataclass

from pipeline.config.settings import Config
from pipeline.data.spec import DatasetSpec
from reports.summary import Published, Summary


@dataclass(frozen=True)
class Benchmark:
    """Data sets and a protocol on which results are published."""

    source: str
    """The address of the synthetic data set, as its spec has it."""
    target: str
    test_split: str
    label_space: str
    source_frames: int
    test_frames: int
    results: tuple[Published, ...]


def _miou(method: str, network: str, scores: tuple[float, float, float], source: str) -> Published:
    before, after, ideal = (score / 100 for score in scores)
    return Published(
        method=method,
        network=network,
        metric="mean_iou",
        source_only=before,
        adapted=after,
        oracle=ideal,
        source=source,
    )


_LIBRARY = "as the Transfer-Learning-Library (github.com/thuml/Transfer-Learning-Library) lists it"
_RESNET, _FORMER = "DeepLabV2, ResNet-101", "DAFormer, MiT-B5"

BENCHMARKS = (
    Benchmark(
        source="https://download.visinf.tu-darmstadt.de/data/from_games/",
        target="https://www.cityscapes-dataset.com",
        test_split="val",
        label_space="cityscapes19",
        source_frames=24966,
        test_frames=500,
        results=(
            _miou("CycleGAN", _RESNET, (37.3, 47.0, 70.5), f"Zhu et al., ICCV 2017, {_LIBRARY}"),
            _miou("CyCADA", _RESNET, (37.3, 47.4, 70.5), f"Hoffman et al., ICML 2018, {_LIBRARY}"),
            _miou("FDA", _RESNET, (37.3, 45.6, 70.5), f"Yang and Soatto, CVPR 2020, {_LIBRARY}"),
            _miou("AdvEnt", _RESNET, (37.3, 43.8, 70.5), f"Vu et al., CVPR 2019, {_LIBRARY}"),
            _miou("BDL", _RESNET, (33.6, 48.5, 65.1), "Li et al., CVPR 2019"),
            _miou("ProDA", _RESNET, (36.6, 57.5, 65.1), "Zhang et al., CVPR 2021"),
            _miou("DAFormer", _FORMER, (45.6, 68.3, 77.6), "Hoyer et al., CVPR 2022"),
        ),
    ),
)
"""What was found in a file or page of its authors or of a library, and not from memory alone."""


def published(config: Config, report: Summary, source_frames: int | None) -> list[Published]:
    """What others have published of the data sets and the protocol of a run; none of any other.

    Networks, sizes of frames and steps are others': such results say what is known to be possible,
    not what a run should have reached.

    Args:
        source_frames: of the run's source; None where they are not there.
    """

    def is_of(benchmark: Benchmark) -> bool:
        protocol = report.protocol
        return (
            _address(config.source) == benchmark.source
            and {_address(config.target), _address(config.test)} == {benchmark.target}
            and config.test.split == benchmark.test_split
            and source_frames == benchmark.source_frames
            and report.images == benchmark.test_frames
            and report.label_space == benchmark.label_space
            and protocol.get("resolution") == "ground truth"
            and protocol.get("classes_averaged") == "those in the ground truth or predicted"
        )

    return [one for benchmark in BENCHMARKS if is_of(benchmark) for one in benchmark.results]


def _address(spec: DatasetSpec) -> str | None:
    return spec.about.url if spec.about else None
