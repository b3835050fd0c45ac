"""What the words of an audit mean: metrics, knowledge, flags, controls. Sentences are made of them in `words.py`."""

from __future__ import annotations

from dataclasses import dataclass

from loraguard.metrics import DSR_THRESHOLD, Estimate

KNOWLEDGE_HELP = {
    "clean": "The photo as it is.",
    "noise": "Every value moved by the whole budget, up or down at random: the control.",
    "no-leak": "The defender attacked the untouched generator and knows of no patch.",
    "leak": "The defender has the very generator that is used, its patch included, and attacked that.",
    "leak+channel": "The defender also knows what happens to the photo on its way, and attacked through that.",
    "transfer": "The defender attacked another generator than the one that is used.",
}

FLAG_HELP = {
    "clean-output-changed": "Outputs are spoilt even on photos that nobody perturbed: the patch changes what the "
    "generator does, and its other figures mean little.",
    "no-better-than-noise": "The defense does no better than random noise of the same budget.",
    "transfer-beats-white-box": "Whoever knows less does better: photos crafted on the untouched generator spoil more "
    "than those crafted on this one, so the attack on this one fails for a reason of its own.",
    "steps-not-enough": "More steps of the attack spoil more: it was stopped too early.",
    "restarts-help": "The worst of several random starts spoils more than one: what a single start finds is luck.",
    "single-step-beats-iterative": "One large step beats a hundred small ones: gradients may be hidden.",
    "gradient-free-beats-gradients": "An attack that only looks at outputs beats one that sees the gradients: the "
    "generator hides them, and a low DSR under leak says nothing.",
    "budget-does-not-count": "Half the budget spoils as much as the whole: the attack is not working.",
    "does-not-saturate": "Not even a far too large budget breaks everything: the generator ignores the photo or "
    "blinds the attack.",
    "threshold-out-of-reach": "The defense moves outputs far more than noise does, and yet hardly one reaches the "
    "threshold of success: it is not made for a generator of so small changes.",
    "threshold-too-low": "Outputs that count as spoilt look as they should: the threshold of success counts what "
    "nobody sees.",
    "one-draw-is-not-enough": "Something draws at random, and an attack along the mean of 16 draws of each gradient "
    "beats one along single draws.",
    "over-budget": "The defense moves photos by more than it says; they were brought back into its budget.",
    "photo-destroyed": "The photos that the defense gives are no longer those photos: that is no protection.",
    "crafted-otherwise-again": "Called again with the same seed, the defense perturbs otherwise: it draws from "
    "somewhere else, and its figures do not come again.",
    "crafted-otherwise-alone": "Photo by photo the defense does something else than in a batch: its figures are those "
    "of a batch, and nobody publishes batches.",
    "only-a-colour-cast": "Setting each colour channel's mean, contrast and place right brings back most; anybody can.",
    "only-where-the-edit-is": "Where the edit changes the photo far more outputs are spoilt than the DSR says: read "
    "the masked figures.",
    "outputs-not-repeatable": "The same photo with the same seed gives another output: the network draws from "
    "somewhere else, or remembers what it saw before.",
    "random-generator": "The network draws at random: attacks that follow the gradient of one draw are too weak.",
    "depends-on-the-batch": "The output for a photo depends on what is beside it or came before it.",
    "does-not-edit": "On clean photos the network does little more than nothing, or only part of the edit: what it "
    "undoes is no loss.",
    "edit-not-made": "Outputs that count as not spoilt make less than half of the edit: nobody who "
    "wanted it has got it. Such a defense does more than its DSR says, and a network that answers so undoes nothing.",
    "outputs-of-another-range": "No output has a dark value, although photos do: the network seems to give values from "
    "0 to 1 in place of -1 to 1, so that distances between its outputs are half of what they should be.",
    "only-known-photos": "On photos that it cannot know, means of two in other colours, the network does not edit, or "
    "not undo, as it does on these.",
    "gradients-do-not-fit": "The gradients do not say what the outputs do: attacks along them are blind, and a low DSR "
    "under leak says nothing.",
    "made-for-other-weights": "The patch was made for a generator of other weights: what it does on this one is no "
    "fault of the patch, and says nothing of it.",
    "trained-on-these-photos": "Audited photos are among those that the patch was trained on: it knows them.",
    "fitted-on-these-photos": "Audited photos are among those that defenses, detectors or adversaries are fitted on.",
    "photos-not-perturbed": "The defense leaves photos what they are: on these nobody has tried to protect anything.",
    "perturbed-by-another": "Photos under this name are those of another name: two rows of one defense.",
    "same-photos-twice": "Audited photos are versions of one another: they are fewer than they seem, and intervals are "
    "too narrow.",
    "channel-spoils-outputs": "Behind the channel outputs are spoilt on photos as they are, or with noise: what is "
    "spoilt there is the channel's doing, and no defense's.",
    "channel-does-nothing": "The channel leaves photos what they are: its rows say nothing that those without it do "
    "not.",
    "stamp-not-found": "The detector does not find the stamp where it was laid: low rates say nothing.",
    "stamp-not-there": "The detector finds the stamp on outputs on which hardly any of it is: its rates are none of "
    "what people see.",
    "stamp-found-everywhere": "The detector finds the stamp on outputs that have none: its rates say nothing.",
    "stronger-attack-found": "Another attack of the same budget spoils more: the figure says what this defense is "
    "worth, not what a defender could reach.",
}
"""What each check's flag means, in a sentence; docs/audit-checks.md says more."""

CONTROLS = {
    "ungated": ("the ungated patch", "trained as the patch is, but without its gates"),
    "clean-only": ("the clean-only patch", "trained as the patch is, but on clean photos alone"),
    "fine-tune": ("the fine-tuned generator", "all of its weights trained as the patch is"),
}
"""What a patch is compared with, by the names that :func:`~loraguard.audit.controls.train_controls` gives."""


@dataclass(frozen=True)
class Column:
    """One metric of the table: its key, its heading, what it means in plain words, and how a figure is written."""

    key: str
    heading: str
    help: str
    form: str = "{:.4f}"
    scale: float = 1.0

    def number(self, value: float) -> str:
        """A value in this metric's unit."""
        return self.form.format(self.scale * value)

    def text(self, value: Estimate) -> str:
        """The figure as it stands in the table."""
        return "equal" if value.mean is None else self.number(value.mean)

    def interval(self, value: Estimate) -> str:
        """Its 95% interval, in the same unit."""
        if value.low is None or value.high is None:
            return ""
        return f"{self.number(value.low)} – {self.number(value.high)}"

    def with_interval(self, value: Estimate) -> str:
        """The figure and, where there is one, its interval behind it."""
        interval = self.interval(value)
        return f"{self.text(value)} ({interval})" if interval else self.text(value)


COLUMNS = (
    Column("dsr", "DSR", "Defense success rate: the share of photos on which the output is spoilt, by default "
           f"where its MSE is over {DSR_THRESHOLD}. High is good for whoever relies on the defense.", "{:.1f}%", 100),
    Column("mse", "MSE", "Mean squared error between the output and what it should have been, values in [-1, 1]."),
    Column("masked_dsr", "Masked DSR", "The same share, measured where the edit changes the photo alone, as CMUA does.",
           "{:.1f}%", 100),
    Column("masked_mse", "Masked MSE", "The same where the edit changes the photo, as CMUA measures it; 0 where it "
           "changes nothing."),
    Column("psnr", "PSNR", "The distance in decibel; over 30 dB the difference is hard to see.", "{:.1f} dB"),
    Column("ssim", "SSIM", "Structural similarity to what the output should have been; 1 is equal.", "{:.3f}"),
    Column("lpips", "LPIPS", "How different they are to a network trained on people's judgements; 0 is equal.",
           "{:.3f}"),
    Column("identity", "Identity", "The cosine between face embeddings of the output and of what it should have "
           "been; 1 is the same person.", "{:.3f}"),
    Column("cidr", "CIDR", "Calibrated identity disruption rate: how much further from the person the output is than "
           "the edit alone takes it, as the Proactive Defense Benchmark defines it; 0 is no further, 1 is the most.",
           "{:.3f}"),
    Column("clip", "CLIP", "The cosine between the output and the name of its edit, as a network sees it that knows "
           "images and text; high is an edit that was made.", "{:.3f}"),
    Column("brisque", "BRISQUE", "How unnatural the output looks by itself; about 0 for natural photos, 100 for "
           "distorted ones.", "{:.1f}"),
    Column("stamp_rate", "Stamp", "The share of outputs on which the detector finds the visible warning.", "{:.1f}%",
           100),
)  # fmt: skip

FRECHET_HELP = (
    "The Fréchet distance between the set of outputs and the set that they should have been, as an encoder sees them "
    "(FID where it is Inception); 0 is equal. It depends on the number of photos."
)
INTERVAL_HELP = (
    "How much the choice of photos matters: made like this, 19 of 20 intervals hold the mean over all photos of the "
    "kind. It says nothing of other seeds, other defenses or photos of another kind."
)
