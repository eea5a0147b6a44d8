"""A dry run: the plan and its cost. If the data are missing, it uses the card and names what to download."""

import dataclasses

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.run import AdaptationRun
from uda.core.distributed import Ranks
from uda.core.interruption import Interruption
from uda.data.cards import Card, MissingDataError, load_card
from uda.data.domains import Domains
from uda.data.random_images import random_domains
from uda.models.backbones import BACKBONES
from uda.training.run_folder import RunLog


class RunWithoutData(AdaptationRun):
    """A run on random images and random weights, with the card's numbers of images. It downloads nothing.

    Args:
        config: config of the planned run.
        missing: what is missing of its data.
        log, ranks, interruption: as for every run.
    """

    def __init__(self, config: AdaptationConfig, missing: str, log: RunLog, ranks: Ranks, interruption: Interruption):
        self.missing = missing
        self.weights = config.model.weights
        model = config.model.model_copy(update={"weights": "none"})
        super().__init__(config.model_copy(update={"model": model}), log, ranks, interruption)

    def load_images(self) -> Domains:
        data, transforms = self.config.data, self.config.transforms
        side = max(transforms.resize, transforms.size)
        domains = random_domains(load_card(data.dataset), data.sources, data.targets, side)
        return domains if data.target_labels != "none" else dataclasses.replace(domains, target_labels=None)


def missing_data(config: AdaptationConfig, ranks: Ranks) -> str | None:
    """What is missing of a card's data set, by the first process that misses something; None: nothing.

    Also None for a run that has a folder already, for features, for images without a card, and for domains whose number
    of images is not in the card. The run itself reports errors of these.
    """
    data = config.data
    card = load_card(data.dataset) if data.dataset is not None else None
    missing = ""
    reads_card = card is not None and card.layout != "generated" and data.features is None
    reads_card = reads_card and card.task == "classification"
    if reads_card and data.target_labelled is None and not config.folder.exists():
        names = [*data.sources, *data.targets]
        try:
            root = card.find_root(data.root)
            for name in names:
                card.find_domain(name, root)
        except MissingDataError as error:
            if all(card.domain(name).images for name in names):
                missing = error.what
    return next(filter(None, ranks.gather_texts(missing)), None)


def dry_run(run: AdaptationRun) -> str:
    """Check config, data and network, and time some steps and predict batches of every stage. Returns text for people.

    Nothing is written. Every process of a job calls it. The run cannot be used afterwards: its network was trained.
    """
    but = " except the decoded store" if run.config.data.cache == "store" else ""
    return f"{run.plan()}\n{run.cost()}\ndry run: config, data and network are right; nothing was written{but}"


def dry_run_without_data(run: RunWithoutData) -> str:
    """The plan by the card, its cost on this machine, and what to download, as text for people.

    Every process of a job calls it.
    """
    config = run.config
    card = load_card(config.data.dataset)
    planned = run.plan()
    # Random images need no loader processes, and the time to make them must not count.
    run.engine.settings = run.engine.settings.model_copy(update={"workers": 0})
    lines = [
        planned,
        run.cost(loads=False),
        "         estimated from random images, without loading",
        *_downloads(card, config.data.root),
    ]
    if run.weights == "hub" and config.model.backbone not in BACKBONES:
        backbone = sum(p.numel() for p in run.engine.network.backbone.parameters())
        lines.append(f"weights  {config.model.backbone} from timm's hub, {size(4 * backbone)}, when the run begins")
    checked = f"uda check-data {config.data.dataset}" + (f" --root {config.data.root}" * bool(config.data.root))
    lines += [f"then     {checked}", f"data missing: {run.missing}; nothing was written"]
    return "\n".join(lines)


def _downloads(card: Card, root: str | None) -> list[str]:
    place = card.places(root)[0]
    if not card.files:
        return [f"download {card.title} from {card.url}, to {place}", f"         {card.notes}"]
    width = max(len(file.name) for file in card.files)
    return [
        f"download {card.title}, to unpack in {place}",
        *(
            f"         {file.name:<{width}}  {size(file.bytes):>8}  {file.url}"
            + (f"  sha256 {file.sha256}" if file.sha256 else "")
            for file in card.files
        ),
    ]


def size(count: int) -> str:
    """A number of bytes as text: 7.7 GB, 170 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
