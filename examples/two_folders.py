"""Use your own two folders: draw small images into a temporary folder, adapt a model, and predict an image."""

import random
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

import uda

CLASSES = ("circle", "square", "triangle")


def draw(folder: Path, domain: str) -> None:
    """Draw 60 images of each class: white on black in the drawings, white on a random colour in the photos."""
    rng = random.Random(domain)
    for name in CLASSES:
        (folder / domain / name).mkdir(parents=True)
        for number in range(60):
            ground = tuple(rng.randrange(60, 160) for _ in "rgb") if domain == "photos" else (0, 0, 0)
            image = Image.new("RGB", (32, 32), ground)
            left, top, side = rng.randrange(2, 10), rng.randrange(2, 10), rng.randrange(14, 20)
            box = (left, top, left + side, top + side)
            shape = ImageDraw.Draw(image)
            if name == "circle":
                shape.ellipse(box, fill="white")
            elif name == "square":
                shape.rectangle(box, fill="white")
            else:
                shape.polygon([(left, box[3]), (box[2], box[3]), (left + side // 2, top)], fill="white")
            image.save(folder / domain / name / f"{number}.png")


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    draw(folder, "drawings")
    draw(folder, "photos")
    overrides = {
        # The source has one folder per class. Labels of the target, if there are any, only measure the accuracy.
        "data": {"dataset": None, "source": folder / "drawings", "target": folder / "photos", "cache": "memory"},
        "output": folder / "run",
        # A small network and few steps, so that this takes seconds. Leave out all following settings for real images.
        "model": {"backbone": "digits_cnn", "weights": "none", "head": None},
        "transforms": {"size": 28, "resize": 32},
        "source.epochs": 6,
        "source.optim.lr": 0.02,
        "self_training.rounds": 4,
        "self_training.steps": 30,
        "self_training.adapt_batch_norm": True,
        "self_training.optim.lr": 0.02,
        "self_training.source_share": {"start": 1.0, "max": 1.0},
    }
    run = uda.adapt("visda_avh", overrides=overrides)
    found = run.predict(folder / "photos" / "circle" / "0.png")
    print(f"{found.ids[0]}: {found.class_names[0]} with probability {found.probabilities.max():.3f}")


if __name__ == "__main__":
    main()
