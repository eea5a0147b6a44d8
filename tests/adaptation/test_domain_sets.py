"""Several sources and targets, labelled target images, partial and open targets: from the config to results.json."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.trees import make_folders
from tests.in_process import adapt
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.adaptation.partial import missing_note
from uda.adaptation.run import AdaptationRun
from uda.core.errors import UserError
from uda.data.class_names import UNKNOWN_CLASS
from uda.data.domains import TargetLabels, load_domains
from uda.data.images import JoinedImages
from uda.training.run_folder import RunLog

CLASSES = ["ant", "bee", "cat", "dog"]

COMPARING = sorted(name for name, method in ADAPTATION_METHODS.items() if method.compares_two)


@pytest.fixture
def places(in_folder):
    """Folders `one`, `two` (sources) and `far`, `near` (targets), eight images per class in each."""
    for seed, name in enumerate(("one", "two", "far", "near")):
        make_folders(in_folder / name, CLASSES, per_class=8, seed=seed)
    return in_folder


def settings(*overrides, source="[one,two]", target="[far,near]"):
    return [f"data.source={source}", f"data.target={target}", *overrides]


def results_of(tiny, *overrides, folder="out", **domains):
    assert adapt(["--cfg", str(tiny), f"output={folder}", *settings(*overrides, **domains)]) == 0
    return json.loads(Path(folder, "results.json").read_text(encoding="utf-8"))


class TestSeveralDomains:
    def test_each_image_has_the_number_of_its_domain(self, tiny, places):
        config = AdaptationConfig.load(tiny, settings())
        domains = load_domains(config.data, 0)
        assert isinstance(domains.source.images, JoinedImages) and len(domains.source.images) == 64
        assert domains.source.domain.tolist() == [0] * 32 + [1] * 32
        assert domains.target.domain.tolist() == [2] * 32 + [3] * 32
        assert len(set(domains.source.images.ids)) == 64
        assert domains.source.images.ids[0].startswith("one/") and domains.source.images.ids[-1].startswith("two/")
        alone = load_domains(AdaptationConfig.load(tiny, settings(source="two")).data, 0)
        some = domains.source.images.take(np.array([40, 3]))
        assert torch.equal(some.read(0), alone.source.images.read(8))
        assert some.ids == [domains.source.images.ids[40], domains.source.images.ids[3]]

    def test_batches_hold_all_sources_and_say_which(self, tiny, places):
        run = AdaptationRun(
            AdaptationConfig.load(tiny, settings("source.batch_size=32", "output=x")), RunLog(silent=True)
        )
        seen = torch.cat([batch.domain for batch in run.batches.source(0, None)])
        assert torch.bincount(seen).tolist() == [32, 32]

    def test_accuracy_by_target_domain(self, tiny, places):
        results = results_of(tiny)
        final = results["final"]
        assert list(final["domains"]) == ["far", "near"]
        means = [figures["class_mean"] for figures in final["domains"].values()]
        assert np.mean(means) == pytest.approx(final["class_mean"])  # as many images of each class in either
        assert min(means) != max(means)

    def test_an_image_that_went_to_another_domain_is_a_change(self):
        """The names stand in the same order as before, but the second image is counted in another domain's accuracy."""
        labels = np.array([0, 1, 0])
        before, after = (TargetLabels(labels, np.array(domain), ("far", "near")) for domain in ([0, 0, 1], [0, 1, 1]))
        assert before.checksum != after.checksum

    def test_report_and_terminal_name_the_domains(self, tiny, places, capsys):
        results_of(tiny, "report.page=true")
        page = (places / "out/report.html").read_text(encoding="utf-8")
        assert "one + two to far + near" in page and "By target domain" in page
        assert "by target domain (oracle) far: " in capsys.readouterr().out

    @pytest.mark.parametrize("method", COMPARING)
    def test_methods_that_compare_two_domains_say_how_they_count(self, tiny, places, capsys, method):
        results_of(tiny, f"method={method}", "adaptation.steps=2", "adaptation.batch={source: 8, target: 8}")
        assert "the first is all sources (one, two), the second all targets (far, near)" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("source", "target", "message"),
        [
            ("[one,one]", "far", "one is named twice"),
            ("[one,two]", "[far,two]", "data.source and data.target are both 'two'"),
            (
                "[one,one.txt]",
                "far",
                r"data.source \(one\) and data.source \(one.txt\) share 1 images.*would count twice",
            ),
            ("[]", "far", "give a name or a list of names"),
            ("one,two", "far", r"no such folder: one,two; .*; write several domains as \[a,b\]"),
        ],
    )
    def test_mistakes(self, tiny, places, source, target, message):
        (places / "one.txt").write_text(
            "".join(
                f"{place}/{name}/{name}_0.jpg {name}\n"
                for place, name in zip(["one", "two", "two", "two"], CLASSES, strict=True)
            )
        )
        with pytest.raises(UserError, match=message):
            load_domains(AdaptationConfig.load(tiny, settings(source=source, target=target)).data, 0)


class TestLabelledTarget:
    @pytest.fixture
    def listed(self, places):
        """Two images of each class of `far`, by a list."""
        lines = [f"far/{name}/{name}_{i}.jpg {name}\n" for name in CLASSES for i in range(2)]
        (places / "some.txt").write_text("".join(lines))
        return "data.target_labelled=some.txt"

    def test_trained_on_and_taken_out_of_the_target(self, tiny, places, listed):
        run = AdaptationRun(
            AdaptationConfig.load(tiny, settings(listed, "output=x", target="far")), RunLog(silent=True)
        )
        assert len(run.domains.labelled.images) == 8
        assert {f"far/{name}" for name in run.domains.target.images.ids}.isdisjoint(run.domains.labelled.images.ids)
        assert len(run.domains.target.images) == len(run.domains.target_labels.reveal()) == 24
        batch = next(iter(run.batches.source(0, None)))
        assert batch.annotated.all() and batch.is_target.tolist() == [False] * 8 + [True] * 16
        assert batch.domain[batch.is_target].tolist() == [2] * 16
        labels = batch.labels[batch.is_target].argmax(1)
        assert torch.bincount(labels, minlength=4).tolist() == [4] * 4  # eight images, each twice

    def test_a_folder_of_its_own(self, tiny, places):
        run = AdaptationRun(
            AdaptationConfig.load(tiny, settings("data.target_labelled=near", "output=x", target="far")),
            RunLog(silent=True),
        )
        assert len(run.domains.labelled.images) == len(run.domains.target.images) == 32

    def test_copies_of_its_images_leave_the_target_too(self, tiny, places):
        for name in CLASSES:
            (places / "some" / name).mkdir(parents=True)
            shutil.copy(places / "far" / name / f"{name}_3.jpg", places / "some" / name / "renamed.jpg")
        words = settings("data.target_labelled=some", target="far")
        target = load_domains(AdaptationConfig.load(tiny, words).data, 0).target
        assert len(target.images) == 28 and not any("_3.jpg" in name for name in target.images.ids)

    @pytest.mark.parametrize("listed", [False, True])
    def test_may_lack_classes(self, tiny, places, listed):
        make_folders(places / "some", CLASSES[:3], per_class=2, seed=8)
        lines = [f"some/{name}/{name}_{i}.jpg {name}\n" for name in CLASSES[:3] for i in range(2)]
        (places / "some.txt").write_text("".join(lines))
        words = settings(f"data.target_labelled=some{'.txt' if listed else ''}", target="far")
        assert load_domains(AdaptationConfig.load(tiny, words).data, 0).labelled.labels.tolist() == [0, 0, 1, 1, 2, 2]

    def test_may_be_all_images_of_a_class_but_not_all_of_the_target(self, tiny, places, listed):
        lines = [f"far/{name}/{name}_{i}.jpg {name}\n" for name in CLASSES for i in range(8)]
        (places / "some.txt").write_text("".join(lines[:8]))
        domains = load_domains(AdaptationConfig.load(tiny, settings(listed, target="far")).data, 0)
        assert set(domains.target_labels.reveal().tolist()) == {1, 2, 3}
        (places / "some.txt").write_text("".join(lines))
        with pytest.raises(
            UserError, match=r"data.target_labelled: it holds all images of data.target .far., so none is left"
        ):
            load_domains(AdaptationConfig.load(tiny, settings(listed)).data, 0)

    @pytest.mark.parametrize("mixed", [True, False])
    def test_every_batch_of_a_round_holds_them(self, tiny, places, listed, mixed):
        way = ["self_training.batch={mixed: 8}"] if mixed else []
        config = AdaptationConfig.load(
            tiny, settings(listed, "output=x", "data.labelled_per_batch=4", *way, target="far")
        )
        run = AdaptationRun(config, RunLog(silent=True))
        choice = run._label_target(0, run.predict())
        batches = list(run.batches.round(0, choice, 0, 5))
        assert len(batches) == 5
        for batch in batches:
            assert len(batch) == 12 and (batch.annotated & batch.is_target).tolist() == [False] * 8 + [True] * 4

    def test_no_image_of_the_source(self, tiny, places, listed):
        (places / "some.txt").write_text("one/ant/ant_0.jpg ant\n")
        with pytest.raises(
            UserError, match=r"data.target_labelled \(some.txt\) and data.source \(one\) share 1 images"
        ):
            load_domains(AdaptationConfig.load(tiny, settings(listed)).data, 0)

    def test_every_image_needs_a_label(self, tiny, places, listed):
        (places / "some.txt").write_text("far/ant/ant_0.jpg\n")
        with pytest.raises(UserError, match=r"data.target_labelled: some.txt: far/ant/ant_0.jpg has no label"):
            load_domains(AdaptationConfig.load(tiny, settings(listed)).data, 0)

    def test_generated_images_cannot_be_named(self):
        with pytest.raises(UserError, match=r"data.target_labelled: the images of .* are not files"):
            load_domains(AdaptationConfig.load("digits_avh", ["data.target_labelled=some.txt"]).data, 0)

    def test_ranks_need_equal_shares(self, tiny, places, listed):
        config = AdaptationConfig.load(
            tiny, settings(listed, "data.labelled_per_batch=5", "runtime.accumulate=2", target="far")
        )
        with pytest.raises(UserError, match=r"data.labelled_per_batch: 5 images cannot be divided evenly among 2"):
            AdaptationRun(config, RunLog(silent=True))


class TestOtherClasses:
    """The target `odd` has ant and bee, and yak, which the source lacks; `few` has ant and bee alone."""

    @pytest.fixture
    def odd(self, places):
        make_folders(places / "odd", ["ant", "bee", "yak"], per_class=8, seed=5)
        make_folders(places / "few", ["ant", "bee"], per_class=8, seed=5)
        return places

    def as_list(self, places, folder, label):
        lines = [
            f"{path.relative_to(places)} {label(path.parent.name)}\n" for path in sorted(places.glob(f"{folder}/*/*"))
        ]
        (places / f"{folder}.txt").write_text("".join(lines))
        return f"{folder}.txt"

    @pytest.mark.parametrize("listed", [False, True])
    def test_a_closed_target_is_refused(self, tiny, odd, listed):
        targets = [self.as_list(odd, name, str) for name in ("odd", "few")] if listed else ["odd", "few"]
        for target in targets:
            with pytest.raises(UserError, match=r"not in"):
                load_domains(AdaptationConfig.load(tiny, settings(source="one", target=target)).data, 0)

    @pytest.mark.parametrize("label", [None, str, lambda name: ["ant", "bee", "cat", "dog", "yak"].index(name)])
    def test_universal(self, tiny, odd, label):
        target = "odd" if label is None else self.as_list(odd, "odd", label)
        told = []
        config = AdaptationConfig.load(
            tiny, settings("data.label_sets=universal", "data.classes=[ant,bee,cat,dog]", source="one", target=target)
        )
        domains = load_domains(config.data, 0, told.append)
        assert domains.classes == tuple(CLASSES)
        labels = domains.target_labels.reveal()
        assert [int(label) for label in labels] == [0] * 8 + [1] * 8 + [UNKNOWN_CLASS] * 8
        assert any(": 8 images are of classes that the source lacks and count as unknown: " in line for line in told)

    def test_partial_run(self, tiny, odd, capsys):
        results = results_of(
            tiny, "data.label_sets=partial", "data.target_classes=[ant,bee]", source="one", target="few"
        )
        final = results["final"]
        assert set(final["per_class"]) == set(CLASSES) and final["per_class"]["cat"] is None
        for record in results["rounds"]:
            assert record["selected_per_class"]["cat"] == record["selected_per_class"]["dog"] == 0
        assert "cat" not in capsys.readouterr().out.partition("warning")[2]

    def test_named_classes_that_the_targets_labels_contradict(self, tiny, odd, capsys):
        results_of(tiny, "data.label_sets=partial", "data.target_classes=[ant,cat]", source="one", target="few")
        told = capsys.readouterr().out
        assert "8 of 16 target images with labels have classes that data.target_classes does not name" in told

    def test_a_labelled_image_says_that_its_class_occurs(self, tiny, odd):
        """A network whose last layer is almost certain of ant and bee would leave cat and dog out."""
        lines = [f"far/{name}/{name}_0.jpg {name}\n" for name in CLASSES[:3]]
        (odd / "some.txt").write_text("".join(lines))
        words = ["data.label_sets=partial", "data.target_labelled=some.txt", "output=x"]
        run = AdaptationRun(
            AdaptationConfig.load(tiny, settings(*words, source="one", target="few")), RunLog(silent=True)
        )
        with torch.no_grad():
            run.engine.network.classifier.weight.zero_()
            run.engine.network.classifier.bias.copy_(torch.tensor([9.0, 9.0, 0.0, 0.0]))
        predicted = run.predict()
        run.validate(predicted.whole)
        assert run._validated.tolist() == [True, True, True, False]

    def test_named_classes_that_labelled_images_contradict(self, tiny, odd):
        (odd / "some.txt").write_text("far/cat/cat_0.jpg cat\n")
        words = [
            "data.label_sets=partial",
            "data.target_classes=[ant,bee]",
            "data.target_labelled=some.txt",
            "output=x",
        ]
        with pytest.raises(UserError, match=r"data.target_classes: 'cat' is missing, but data.target_labelled has it"):
            AdaptationRun(
                AdaptationConfig.load(tiny, settings(*words, source="one", target="few")), RunLog(silent=True)
            )

    def test_universal_run_reports_unknown_classes_apart(self, tiny, odd, capsys):
        results = results_of(tiny, "data.label_sets=universal", "report.page=true", source="one", target="odd")
        unknown = results["final"]["unknown"]
        assert unknown["images"] == 8 and 0 <= unknown["auroc_confidence"] <= 1 and 0 <= unknown["auroc_avc"] <= 1
        assert "8 images of unknown classes (oracle)" in capsys.readouterr().out
        page = (odd / "out/report.html").read_text(encoding="utf-8")
        assert "8 target images have classes that the source lacks" in page

    def test_what_is_nearly_a_class_is_no_unknown_one(self, tiny, odd):
        (odd / "odd" / "yak").rename(odd / "odd" / "Cat")
        for label_sets in ("open", "universal"):
            config = AdaptationConfig.load(tiny, settings(f"data.label_sets={label_sets}", source="one", target="odd"))
            with pytest.raises(UserError, match=r"'Cat' and 'cat' differ only by case"):
                load_domains(config.data, 0)

    @pytest.mark.parametrize(("target", "label_sets"), [("odd", "universal"), ("few", "partial")])
    def test_other_classes_are_refused_with_the_setting_for_them(self, tiny, odd, target, label_sets):
        config = AdaptationConfig.load(tiny, settings(source="one", target=target))
        with pytest.raises(UserError, match=rf"or set data.label_sets={label_sets} if they really differ; or set"):
            load_domains(config.data, 0)

    def test_the_log_says_which_classes_seem_to_be_missing(self):
        assert "lacks 1 of 2 classes (bee)" in missing_note(np.array([True, False]), ["ant", "bee"])
        assert missing_note(np.array([True, True]), ["ant", "bee"]).endswith("has all classes")

    def test_an_order_that_all_folders_speak_against_is_refused(self, tiny, odd):
        """One label that differs from its folder may be a mended one."""
        words, numbers = ["data.classes=[ant,bee,cat,dog]"], dict(zip(CLASSES, (1, 0, 3, 2), strict=True))
        target = self.as_list(odd, "far", numbers.get)
        config = AdaptationConfig.load(tiny, settings(*words, source="one", target=target))
        with pytest.raises(UserError, match=r"line 1: label 1 is 'bee' .* but the image's folder is 'ant'"):
            load_domains(config.data, 0)
        text = "".join(f"far/{name}/{name}_{i}.jpg {k}\n" for k, name in enumerate(CLASSES) for i in range(8))
        (odd / target).write_text(text.replace("ant_0.jpg 0", "ant_0.jpg 1"))
        assert load_domains(config.data, 0).target_labels.reveal()[0] == 1

    def test_a_target_of_unknown_classes_alone_cannot_be_measured(self, tiny, odd):
        (odd / "yaks.txt").write_text("".join(f"odd/yak/yak_{i}.jpg yak\n" for i in range(8)))
        words = settings("data.label_sets=universal", source="one", target="yaks.txt")
        with pytest.raises(UserError, match=r"no image of yaks.txt is of a class of the source"):
            load_domains(AdaptationConfig.load(tiny, words).data, 0)
        assert (
            load_domains(AdaptationConfig.load(tiny, [*words, "data.target_labels=none"]).data, 0).target_labels is None
        )

    def test_an_open_target_has_all_of_the_sources_classes(self, tiny, odd):
        config = AdaptationConfig.load(tiny, settings("data.label_sets=open", source="one", target="odd"))
        with pytest.raises(UserError, match=r"classes of the source domain that are not in odd: cat, dog"):
            load_domains(config.data, 0)

    def test_a_partial_run_resumes_with_the_classes_that_it_began_with(self, tiny, odd, monkeypatch):
        """The classes that validators look at are estimated once; a resume must not estimate them anew."""
        words = ["data.label_sets=partial", "self_training.rounds=2"]
        whole = results_of(tiny, *words, source="one", target="few")
        assert (
            adapt(
                [
                    "--cfg",
                    str(tiny),
                    "output=cut",
                    *settings(words[0], "self_training.rounds=1", source="one", target="few"),
                ]
            )
            == 0
        )
        cut = results_of(tiny, *words, folder="cut", source="one", target="few")
        assert [record["validators"] for record in cut["rounds"]] == [
            record["validators"] for record in whole["rounds"]
        ]
