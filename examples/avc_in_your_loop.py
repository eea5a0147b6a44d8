"""Self-training with AVC in your own PyTorch loop: 8 x 8 digits, upright in the source and rotated in the target."""

import numpy as np
import torch
from scipy.ndimage import rotate
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import uda

torch.manual_seed(0)
pixels, labels = load_digits(return_X_y=True)
pixels = pixels.astype(np.float32) / 16
turned = rotate(pixels.reshape(-1, 8, 8), 25, axes=(1, 2), reshape=False, order=1).reshape(-1, 64)
pixels, turned, labels = torch.from_numpy(pixels), torch.from_numpy(turned), torch.from_numpy(labels)

# Half of the images are the labelled source. The others are rotated. Their labels only measure the accuracy.
source, source_labels = pixels[:900], labels[:900]
target, target_labels = turned[900:], labels[900:]

body = nn.Sequential(nn.Linear(64, 128), nn.ReLU())
classifier = nn.Linear(128, 10)
optimizer = torch.optim.Adam([*body.parameters(), *classifier.parameters()], lr=1e-3)


def train(images: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(classifier(body(images[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


train(source, source_labels, epochs=20)
for index in range(6):
    with torch.no_grad():
        features = body(target)
        logits = classifier(features)
    accuracy = (logits.argmax(1) == target_labels).float().mean()

    # AVC is the confidence in each class. The best share of every class is selected, and the share grows by round.
    scores = uda.score(features, logits, classifier.weight, selector="avc")
    chosen = uda.select(scores, portion=0.3 + 0.1 * index)
    right = (chosen.labels == target_labels)[chosen.selected].float().mean()
    print(f"round {index}: accuracy {accuracy:.3f}; {int(chosen.selected.sum())} selected, {right:.3f} of them right")

    images = torch.cat([source, target[chosen.selected]])
    train(images, torch.cat([source_labels, chosen.labels[chosen.selected]]), epochs=10)

accuracy = (classifier(body(target)).argmax(1) == target_labels).float().mean()
print(f"at the end: accuracy {accuracy:.3f}")
