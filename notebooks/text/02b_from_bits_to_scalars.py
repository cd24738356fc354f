# %% [markdown]
# # 2b. From bits to scalars: what does the poster's binarizer cost?
#
# **Question.** With the same transform and the same decoder, how much is lost because the poster's code is made of *bits*, and what do the parts that came after it bring: whole-number latents, a prior that looks around, side information, a learned encoder?
#
# **Reads** a data set by name (`embedded`: photographs inside installed packages), `results/released/luma_ladder`, and the released weights, if there are any. **Writes** `results/<profile>/02b_from_bits_to_scalars/`. **Run time** about a minute of one core (quick), an hour (`cpu`). **Answers** the poster's choice of a binarizer, which follows [7]: Li et al., CVPR 2018. Numbers in the text are the quick profile's, as committed, unless they are said to be the `cpu` profile's; training ends elsewhere on other machines, usually in the second decimal.

# %% [markdown]
# ## What we expect
#
# Notebook 02 ended with a threshold code: a fixed cosine transform, up to 128 yes-or-no questions about it, and a decoder that learns. Whole numbers say the same things in another way ("the coefficient is 3 steps" answers five such questions at once), so in principle bits lose nothing. In practice the thresholds must be fine enough and the context models complete, and ours are neither: from 0.3 bits per pixel on we expect whole-number latents to be **ahead by more than 1 dB once their prior is trained for some minutes**, since the questions of the threshold code end there. In the seconds of the quick profile a prior has hardly learned anything; here we expect only the *order at high rates*.
#
# Of the parts we expect most from the **four steps** (they see neighbours), less from the **hyperprior** (it must be paid for), and from the **learned encoder** next to nothing in so short a run: in earlier runs it began to pay after 40 minutes.

# %% tags=["parameters"]
profile: str = "quick"  # name of the profile, a folder of results
dataset: str = "embedded"  # photographs to train on: embedded, train, or a folder
test_dataset: str = ""  # photographs to judge by, empty means those held out of the first set
held_out: str = "chelsea,motorcycle_left"  # photographs that are not trained on
train_images: int = 0  # photographs to train on, 0 means all
crop_px: int = 384  # side of the centre crop of test photographs, 0 means whole ones
training_profile: str = "quick"  # optimiser and loss, as for mcml train
width: int = 32  # channels of the trunks
code_channels: int = 128  # bits a position of the threshold code; scalar latents are 64
steps: int = 120  # training steps of every run
batch: int = 8  # patches a step
patch_px: int = 64  # side of the training patches, pixels
dials: str = "0,0.15,0.3,0.45,0.6,0.8,1"  # values of the rate dial q at which models are measured
equal_bpp: str = "0.15,0.2,0.3,0.5"  # rates at which systems are compared
workers: int = 1  # runs side by side, 0 means one for each core
seed: int = 0  # of weights and patches

# %% tags=["nbval-ignore-output"]
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from mcml.base.files import repo_root
from mcml.codec.interface import get_codec
from mcml.data.patches import PatchStore
from mcml.lab import Output, banner, bd_rate, check_parameters, experiments, figures
from mcml.lab import inspect as inspection
from mcml.lab import parse_bpp_list, parse_numbers, seed_everything
from mcml.metrics.color import luma
from mcml.metrics.distortion import psnr_from_mse
from mcml.model.scalar import ORDER, lmbda_of, logistic_bits
from mcml.model.settings import load_recipe
from mcml.model.validate import to_tensor, validate
from mcml.training.loss import rate_distortion_loss

torch.set_num_threads(1)
seed_everything(seed)
figures.use_style()
print(banner(profile))

# %%
parameters = check_parameters(
    profile=profile, dataset=dataset, test_dataset=test_dataset, held_out=held_out, crop_px=crop_px,
    train_images=train_images, training_profile=training_profile, width=width, steps=steps, batch=batch,
    code_channels=code_channels, patch_px=patch_px, dials=dials, equal_bpp=equal_bpp, workers=workers,
    seed=seed,
)  # fmt: skip
photographs = experiments.split_photographs(
    dataset, test_dataset, held_out=held_out, train_images=train_images, crop_px=crop_px
)
train, test = list(photographs.train.values()), list(photographs.test.values())
dial_values, rates = parse_numbers(dials), parse_bpp_list(equal_bpp)
output = Output("02b_from_bits_to_scalars", profile, parameters, data_hash=photographs.digest, seed=seed)
print("training on", len(train), "photographs | judged by", len(test))

# %% [markdown]
# The five systems of this notebook differ in one thing each. All have the poster's trunks (16 residual blocks), the same width, steps, patches, and the squared error as distortion; A to D share an encoder that is the 8 x 8 cosine transform and stays so.

# %%
shared = experiments.short_run(width, code_channels, steps, batch, patch_px)
shared |= {"train.seed": seed, "train.minutes": 0.0, "loss.distortion": "l2"}
shared["train.lr"] = 3e-3 if steps < 500 else 1e-3  # few steps take long ones
binary = load_recipe(training_profile, "luma").changed(**shared)
binary = binary.changed(**{"model.luma.importance": "uniform", "stage.encoder_from": 1.0})
learned = load_recipe(
    training_profile, "luma", ["train.minutes=0.0", f"train.steps={steps}"], quantizer="scalar"
)
learned = learned.changed(**shared | {"model.luma.code_channels": 64})
frozen = learned.changed(**{"stage.encoder_from": 1.0})  # a share of the run: never
recipes = {"A threshold code": binary}
recipes["B scalar latents"] = frozen.changed(**{"model.luma.prior_steps": 1, "model.luma.hyperprior": False})
recipes["C + hyperprior"] = frozen.changed(**{"model.luma.prior_steps": 1})
recipes["D + four steps"] = frozen
recipes["E + learned encoder"] = learned

# %% [markdown]
# ## Rounding as a channel
#
# A scalar code keeps what the encoder says as numbers: 64 **latents** $y$ at each position of the stride-8 grid. They are scaled and rounded to **symbols**, and scaled back for the decoder:
#
# $$s = \operatorname{round}(y\, g_q), \qquad \hat y = s / g_q .$$
#
# The **gain** $g_q$, one number a channel, is the dial: a large gain makes fine steps of width $1/g_q$, hence many different symbols, many bits and a small error. It is learned for eight dials from $q = 0$ to $q = 1$ and interpolated between them, so one set of weights serves all rates, as the dial of the poster's importance map does. The start is a transform coder: latents are the 64 cosine coefficients divided by their standard deviation, and gains give every coefficient the same step in grey levels.

# %%
start = experiments.untrained(learned, train)
stream = start.streams["Y"]
picture = to_tensor(test[0][:256, :256])
plane = start.planes(picture)["Y"]  # (1, 1, 256, 256)


def quantise(dial):
    """Return gains (1, 64, 1, 1) and symbols (1, 64, 32, 32) of the picture at a dial."""
    with torch.no_grad():
        gain = stream.gain(torch.tensor([dial]))
        return gain, torch.round(stream.encoder(plane)[1] * gain)


chosen = {q: quantise(q) for q in (0.0, 0.5, 1.0)}

# %%
kinds = {f"q = {q:g}": [len(s.unique()), float((s == 0).float().mean())] for q, (_, s) in chosen.items()}
pd.DataFrame(kinds, index=["different symbols", "share of zeros"]).round(2)


# %% [markdown]
# Rounding has no useful gradient, like the binarizer. Two stand-ins share the work. For the **rate**, noise that is uniform in $\pm 1/2$ takes the place of the rounding: $y g + u$ is as far from $y g$ as a rounded value is, but moves when the weights move. Its density at a point is the mass that rounding would put there, so one formula prices both. For the **decoder**, which would learn to smooth noise away that files do not have, rounding stays real and its gradient is taken to be one (*straight through*). How well does noise stand in? The same model, the same picture, both ways:

# %%
def both_rates(model, dial):
    """Return estimated bits a pixel with noise in place of rounding, and with rounding."""
    draws, size = torch.Generator().manual_seed(seed), picture.shape[-2:]
    noise = {k: torch.rand(1, *v, generator=draws) - 0.5 for k, v in model.noise_shapes(*size).items()}
    with torch.no_grad():
        return [float(model(picture, dial, decode=(), noise=n).estimated_bpp) for n in (noise, None)]


stand_in = [(q, *both_rates(start, q)) for q in dial_values]
stand_in = pd.DataFrame(stand_in, columns=["dial", "noise", "rounding"])
stand_in["noise / rounding"] = stand_in.noise / stand_in.rounding
stand_in.round(2)

# %%
figure, (axes,) = figures.panels(1, 2, 9, 3.2, "Gains, and noise for rounding")
for hue, (q, (gain, _)) in zip(("#88ccee", "#44aa99", "#332288"), chosen.items(), strict=False):
    axes[0].plot(range(1, 65), gain.flatten(), color=hue, label=f"q = {q:g}")
axes[0].set(xlabel="latent, by falling variance", ylabel="gain (symbols a unit)", yscale="log")
axes[0].set_yticks([0.1, 1, 10], ["0.1", "1", "10"])
for column, marker, hue in (("rounding", "o", "#333333"), ("noise", "x", "#cc6677")):
    axes[1].plot(stand_in.dial, stand_in[column], marker=marker, color=hue, label=column)
axes[1].set(xlabel="dial q", ylabel="estimated bits per pixel", yscale="log")
axes[1].set_yticks([0.2, 0.5, 1, 2], ["0.2", "0.5", "1", "2"])
axes[1].yaxis.set_minor_locator(plt.NullLocator())
for ax in axes:
    ax.legend(fontsize="small")
output.figure("noise", figure, "Figure 2b.1: gains, and rate by noise and by rounding.", stand_in)
plt.show()


# %% [markdown]
# Figure 2b.1: left, one step in grey levels for all coefficients means a large gain for the ones of large variance, and each dial is the same curve at another height: from $q = 0$ to $q = 1$ gains grow 16-fold, and the share of zeros falls from 98 to 74 %. (A trunk of 32 channels carries the 32 strongest coefficients; the flat part belongs to the other 32 latents, which begin as next to nothing.) Right, at the highest dial noise and rounding cost the same within 2 %; at the lowest, noise costs twice as much. Is that the prior, which has not learned anything, or the noise? A latent of normal distribution, priced by the best logistic that there is for it:

# %%
def cheapest(values):
    """Return bits a symbol under the best of many scales of a logistic about 0."""
    scales = torch.logspace(-2, 1, 60)
    return min(float(logistic_bits(values, torch.zeros(()), scale.log()).mean()) for scale in scales)


draws = torch.Generator().manual_seed(seed)
normal, u = torch.randn(20000, generator=draws), torch.rand(20000, generator=draws) - 0.5
spreads = {
    f"{spread:g} steps": (cheapest(spread * normal + u), cheapest(torch.round(spread * normal)))
    for spread in (0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
}
pd.DataFrame(spreads, index=["bits with noise", "bits with rounding"]).round(2)


# %% [markdown]
# It is the noise. Where a latent's spread is half a step or more, both cost the same; below, rounding makes a sure zero, which is free, and noise leaves a spread of $\pm 1/2$, which is not. So training sees an *upper bound* of the rate, and at low rates, where most symbols are sure zeros, a loose one.

# %% [markdown]
# ## What a symbol costs
#
# An entropy coder spends $-\log_2 P(s)$ bits on a symbol to which its model gives the probability $P(s)$. Here that model is a **logistic** with a mean $\mu$ and a scale $b$ for every latent, of which a symbol gets the mass within half a step, with $\sigma$ the sigmoid:
#
# $$P(s) = \sigma\!\left(\frac{s + \frac12 - \mu}{b}\right) - \sigma\!\left(\frac{s - \frac12 - \mu}{b}\right).$$
#
# It is written as in a textbook here; `mcml.model.scalar.logistic_bits` rearranges it so that far tails keep a gradient.

# %%
def price(symbol, mean, scale):
    """Return -log2 of the logistic's mass within a half of a symbol."""
    mass = torch.sigmoid((symbol + 0.5 - mean) / scale) - torch.sigmoid((symbol - 0.5 - mean) / scale)
    return -torch.log2(mass)


symbols = torch.arange(-4.0, 5.0)
guesses = {"sure": (0.0, 0.15), "a guess": (0.0, 1.0), "sure and wrong": (2.0, 0.15)}
prices = {name: price(symbols.double(), *guess).float() for name, guess in guesses.items()}
for name, (mean, scale) in guesses.items():
    theirs = logistic_bits(symbols, torch.tensor(mean), torch.tensor(scale).log())
    print(f"{name}: the module's bits are these:", torch.allclose(prices[name], theirs, atol=0.01))

# %%
figure, (axes,) = figures.panels(1, 2, 9, 3.2, "A logistic prior prices whole numbers")
rows = []
for hue, (name, bits) in zip(figures.HUES, prices.items(), strict=False):
    label = f"{name}: mean {guesses[name][0]:g}, scale {guesses[name][1]:g}"
    axes[0].plot(symbols, 2**-bits, "o-", color=hue, lw=1, label=label)
    axes[1].plot(symbols, bits, "o-", color=hue, lw=1)
    rows += [{"prior": name, "symbol": int(s), "bits": float(b)} for s, b in zip(symbols, bits, strict=True)]
axes[0].set(xlabel="symbol", ylabel="probability")
axes[1].set(xlabel="symbol", ylabel="bits", ylim=(0, 20))
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
output.figure("prices", figure, "Figure 2b.2: mass and bits of symbols under three priors.", rows)
plt.show()

# %% [markdown]
# Figure 2b.2: a prior that is *sure* pays a tenth of a bit for what it expects and 5 bits for the symbol beside it; a *guess* pays 2 bits for the likeliest symbol and 6 for one that is off by four. Being sure and wrong is what costs most: 14 bits at two steps from the mean, and rising by some 10 bits a step. So a prior must know what it does not know, and that is what the scale is for.

# %% [markdown]
# ## In which order, and what is known by then
#
# All hangs on mean and scale, and these are what networks guess: from what is *decoded already*. One symbol after the other would let each see all before it, but a picture of 768 x 512 has 400,000 latents, and a network that runs as often takes minutes. The **quadtree order** (DCVC-DC, Li et al. 2023) needs four runs for a whole picture. The 64 channels make four groups, the positions four lattices (row and column even or odd), and a Latin square says when which group is coded at which lattice, so that each step codes a quarter of everything: one group at *every* position. A step then sees other groups at the same position and its own group at the positions beside.
#
# The first step sees nothing. For it, and for what neighbours cannot tell, there is the **hyperprior** (Ballé et al. 2018): 32 whole numbers for each 4 x 4 positions, coded first under a fixed logistic a channel, from which a small network makes *side features* for every position. They cost bits; they pay if they save more.

# %%
order = pd.DataFrame(
    ORDER,
    index=[f"group {i}" for i in range(1, 5)],
    columns=["even, even", "even, odd", "odd, even", "odd, odd"],
)
print("each step once a group and once a lattice:", bool((np.sort(order.T) == range(4)).all()))
print("the network's own order:", torch.equal(stream.prior.order[::16].flatten(1), torch.tensor(ORDER)))
order + 1

# %%
figure, (axes,) = figures.panels(
    1, 4, 9.5, 2.9, "When a latent is coded: 8 x 8 positions of each group of channels"
)
step_of = stream.prior.step_of(8, 8)[::16] + 1
for group, (ax, steps_of) in enumerate(zip(axes, step_of, strict=True), 1):
    ax.imshow(steps_of, cmap="YlGnBu", vmin=0, vmax=6)
    for (row, column), step in np.ndenumerate(steps_of.numpy()):
        hue = "white" if step > 3 else "black"
        ax.text(column, row, step, ha="center", va="center", fontsize=8, color=hue)
    ax.set(title=f"channels {16 * group - 15} to {16 * group}", xticks=[], yticks=[])
    ax.grid(visible=False)
rows = [(*at, int(s)) for at, s in np.ndenumerate(step_of.numpy())]
rows = pd.DataFrame(rows, columns=["group", "row", "column", "step"])
output.figure("order", figure, "Figure 2b.3: the quadtree order of four steps.", rows)
plt.show()

# %% [markdown]
# Figure 2b.3: the number is the step in which a latent is coded. In step 1 each group is coded at a lattice of its own and knows side features alone. A latent of step 2 has its own group decoded at left and right, and one other group at its own position; one of step 4 has its own group decoded at all eight neighbours, and the three other groups at its position.

# %% [markdown]
# ## One training step, by hand
#
# The step that notebook 02 shows for bits, now for scalars; the network is the start above, at random dials. Five lines are new: gain, rounding straight through, side features, mean and scale, and the price of the *noisy* symbol.

# %%
draws = torch.Generator().manual_seed(seed)
rgb = PatchStore(train).sample(8, 64, draws).float() / 255  # (8, 3, 64, 64)
dial = torch.rand(8, generator=draws)  # (8,), from 0 to 1
y = start.planes(rgb)["Y"]  # (8, 1, 64, 64), luma less one half
noise = {k: torch.rand(8, *v, generator=draws) - 0.5 for k, v in start.noise_shapes(64, 64).items()}


# %%
def forward():
    latents, gain = stream.encoder(y)[1], stream.gain(dial)
    scaled = latents * gain
    rounded = scaled + (scaled.round() - scaled).detach()  # forward rounded, backward the identity
    side, bits = stream.hyperprior(latents, noise["Y.hyperprior"])
    mean, log_scale = stream.prior(rounded / gain, side, dial)
    noisy = scaled + noise["Y.latents"]
    bits = bits + logistic_bits(noisy, mean * gain, log_scale + gain.log()).sum((1, 2, 3))
    return stream.decode(rounded / gain, dial), bits / 64**2


# %% [markdown]
# *The loss* has the two sides of notebook 02's, but both are real here: $D$ is the squared error in grey levels, and $R$ the estimated bits per pixel themselves, where the binary code had to take the mean of its importance map in their place.
#
# $$\mathcal{L} = \operatorname{mean}_b\; \lambda_b^{-0.35} \left( \lambda_b D_b + R_b \right)$$
#
# $\lambda$ rises with the dial, from 0.0002 to 0.05 bits per squared grey level; the power in front keeps dials of many bits from drowning those of few.

# %%
for parameter in stream.parameters():
    parameter.requires_grad_(True)
lmbda = lmbda_of(dial)
y_hat, bpp = forward()
error = (255 * (y - y_hat)).square().mean((1, 2, 3))
loss = (lmbda**-0.35 * (lmbda * error + bpp)).mean()
module = rate_distortion_loss({"Y": y}, {"Y": y_hat}, {"Y": bpp}, start.lmbda(dial), learned.loss).total
whole = start(rgb, dial, noise=noise)
print("the module's loss is this sum:", torch.allclose(module, loss, rtol=1e-4))
print("the model's forward is these lines:", torch.allclose(whole.estimated_bpp, bpp, rtol=1e-3))
loss.backward()
parts = {name: [p.grad for p in of if p.grad is not None] for name, of in stream.parts().items()}
reached = {name: bool(sum(g.square().sum() for g in grads) > 0) for name, grads in parts.items()}
print("a gradient reaches gains:", bool(stream.log_gain.grad.abs().sum() > 0), "|", reached)

# %% [markdown]
# From here on it is training as before. The last 15 % of a run is different: encoder and gains stay as they are, rounding is real on both sides, and decoder and prior learn what files really hold.
#
# ## One thing at a time
#
# Five runs of equal steps. **A** is what notebook 02 trains: the threshold code of a fixed cosine transform, context models for its bits, a decoder that learns (with one level for all squares, which was ahead there). **B** exchanges the code: the same transform's coefficients as whole numbers, each channel with *one* mean and scale for a dial. **C** adds the hyperprior, **D** the four steps, **E** lets the encoder learn.

# %%
trained = experiments.run_all(
    {name: experiments.TrainingRun(recipe) for name, recipe in recipes.items()}, train, workers=workers
)
models = {name: model for name, (model, _) in trained.items()}


# %%
def points(name, model):
    """Return a model's points on each picture: estimated rate and luma PSNR by dial."""
    low, high = model.config.dial_range
    own = [low + (high - low) * q for q in dial_values]
    return [
        {"system": name, "image": image, "estimated_bpp": row["estimated_bpp_Y"], "psnr_Y": row["psnr_Y"]}
        for image, pixels in photographs.test.items()
        for row in validate(model, [pixels], own)
    ]


# %%
estimates = pd.DataFrame([row for name, model in models.items() for row in points(name, model)])
estimates = estimates[
    estimates.estimated_bpp > 0.01
]  # the threshold code's lowest dial sends next to nothing
output.table("points", estimates, "Estimated rate and luma PSNR by system, picture and dial.")

# %%
files = pd.DataFrame(
    [
        {"system": codec, "image": image, "bpp": row["bpp"], "psnr_Y": row["psnr_Y"]}
        for codec in experiments.LUMA_QUALITIES
        for image, pixels in photographs.test.items()
        for row in experiments.luma_codec([pixels], codec)
    ]
)
output.table("classical", files, "Luma coded alone as grey pictures: bytes of files, by picture.")


# %% tags=["nbval-ignore-output"]
def table_at(rows, rate_column):
    return pd.DataFrame(experiments.at_rates(rows.to_dict("records"), rates, ("psnr_Y",), rate_column))


ladder = table_at(estimates, "estimated_bpp").assign(rate_is="estimate")
classical = table_at(files, "bpp").assign(rate_is="file")
at_rates = pd.concat([ladder, classical])
caption = "Luma PSNR (dB) at equal rates, picture by picture; estimates and files apart."
output.table("at_equal_rates", at_rates, caption)
wide = at_rates.pivot(index=["rate_is", "system"], columns="rate", values=["psnr_Y", "extended"])
wide.round(2)

# %%
grid = np.geomspace(min(rates), max(rates), 12)
curves = {
    kind: pd.DataFrame(experiments.at_rates(rows.to_dict("records"), grid, ("psnr_Y",), column))
    for kind, rows, column in (("estimate", estimates, "estimated_bpp"), ("file", files, "bpp"))
}
# the others are continued beyond their points
reached = {kind: read[read.extended <= len(test) / 2] for kind, read in curves.items()}

# %%
title = f"Luma of {len(test)} photographs not trained on, {steps} steps a run"
figure, axes = figures.panels(1, 3, 11, 4.2, title)
for ax, read in zip(axes.flat, reached.values(), strict=False):
    figures.draw_curves(ax, read, "psnr_Y", rate="rate", by="system")
figures.draw_gains(axes[0, 2], reached["estimate"], "psnr_Y", "A threshold code", rate="rate", by="system")
axes[0, 0].set(title="networks: an ideal coder's estimate", ylim=(22, 33))
axes[0, 1].set(title="classical: bytes of files", ylim=(22, 33))
plt.setp(axes, xlabel="bits per pixel")
handles = [line for ax in axes.flat[:2] for line in ax.lines]
figure.legend(handles=handles, loc="outside lower center", ncols=4)
caption = "Figure 2b.4: luma PSNR at equal rates, and gains."
output.figure("ladder", figure, caption, pd.concat(curves.values()))
plt.show()

# %% [markdown]
# Figure 2b.4: (only where at least half of the pictures' curves reach; right, decibels more than the threshold code at equal estimated bits.) After some ten seconds of training each, bits and whole numbers cross: below 0.28 bits per pixel the **threshold code** is ahead, since its context models, one for each bit and small, learn fast; above it is held back by what it can say. Its 128 questions end at 0.3 bits per pixel on these pictures (the table's `extended` says how many of the two curves had to be continued), while the **scalar latents** go on, and are 1.7 dB ahead at 0.5 if A's curve is continued by a straight line. B to E stay below JPEG, by 0.2 dB at 0.5: a prior that has seen 120 steps is the dear part, as the next table shows. The order of C, D and E at low rates is that of what must be learned.
#
# Does noise still stand for rounding in the trained model? The table of the first section again, for E:

# %% tags=["nbval-ignore-output"]
after = [(q, *both_rates(models["E + learned encoder"], q)) for q in dial_values]
after = pd.DataFrame(after, columns=["dial", "noise", "rounding"])
output.table("noise_after", after, "Estimated rate by noise and by rounding after training, one picture.")
after.assign(**{"noise / rounding": after.noise / after.rounding}).round(2)


# %% [markdown]
# From 1.7 at the lowest dial to 1.1 at the highest, and in the `cpu` profile from 1.6 to 1.1. So it stays: noise shows where the rate falls, not what it is. That is why every rate here is measured with real rounding, and why a run ends on it.
#
# What each step gains, against the one before: in decibels at equal bits, and in percent of bits at equal PSNR (Bjontegaard's rate difference, per picture, then the mean; negative is saved).

# %%
def bits_saved(before, after):
    """Return the mean over pictures of the rate difference (%) between two systems at equal PSNR."""
    both = estimates[estimates.system.isin([before, after])]
    both = both.rename(columns={"system": "codec", "estimated_bpp": "bpp"})
    each = [bd_rate(rows, before, "psnr_Y") for _, rows in both.groupby("image")]
    return float(np.nanmean([rows.set_index("codec").bd_rate_percent[after] for rows in each]))


# %% tags=["nbval-ignore-output"]
names, level = list(recipes), ladder.pivot(index="system", columns="rate", values="psnr_Y")
gains = pd.DataFrame(
    {"step": f"{before[0]} to {after}", "bits_percent": bits_saved(before, after)}
    | {f"db_at_{rate:g}": level.loc[after, rate] - level.loc[before, rate] for rate in rates}
    for before, after in pairwise(names)
)
output.table("gains", gains, "What each step gains over the one before.")
gains.round(2)

# %% [markdown]
# In the quick profile every part has to pay for its schooling first. The **hyperprior** costs 11 % of the bits at equal PSNR (0.09 bits per pixel at every dial: its 32 numbers for 16 positions are still priced by a logistic that has hardly moved), the **four steps** win 9 % back, half a decibel and more at every rate, and the **learned encoder** gains at the lowest rate alone. So here neither the hyperprior nor the encoder earns what it costs, as expected of seconds; the larger profile must say more.

# %% [markdown]
# ## At equal steps of the larger profile
#
# Seconds say how parts begin. The same five runs in the `cpu` profile: trunks of 64 channels, a threshold code of 384 bits, 800 steps of eight patches of 192 x 192 (0.24 Gpixel a run; 3 CPU minutes for B to 7 for E), 375 photographs, judged on all 24 of `valid`. The tables lie in `results/released/luma_ladder`. Single seed; `extended` counts the pictures whose curves had to be continued to reach a rate.

# %%
folder = repo_root() / "results" / "released" / "luma_ladder"
longer = pd.read_csv(folder / "at_equal_rates.csv")
longer.pivot(index=["rate_is", "system"], columns="rate", values="psnr_Y").round(2)

# %%
pd.read_csv(folder / "gains.csv").round(2)


# %% [markdown]
# This is *not* what we expected for B: **whole numbers alone lose** 1.3 to 1.6 dB up to 0.3 bits per pixel. Exchanging the code also took away A's context models, which see a bit's neighbours; B's prior sees nothing. A code cannot be judged apart from its prior. The **hyperprior** then saves 13 % of the bits at equal PSNR, though at 0.15 it still costs more than it brings, the **four steps** another 12 % (0.8 to 1.2 dB, at every rate: the largest gain), the **learned encoder** 2 %. With all of them the whole numbers have drawn level with the bits at 0.3 and are 1.2 dB ahead at 0.5, not from 0.3 on as expected; at 0.15 they are still 1 dB behind, and 1.0 to 1.6 dB behind JPEG 2000. A start fitted to data, bit by bit, is worth many minutes of a prior's learning.

# %% [markdown]
# ## Where the bits go
#
# The estimate is a sum over symbols, so it can be cut by step, and by hyperprior. The cell repeats the forward pass up to the price of each symbol and adds prices up by the step that codes it.

# %%
@torch.no_grad()
def bits_by_part(model, image, dial):
    """Return bits of the hyperprior and of each step, and the model's own sum, of one picture."""
    of, q = model.streams["Y"], torch.tensor([dial])
    x = model.planes(to_tensor(image[: image.shape[0] // 8 * 8, : image.shape[1] // 8 * 8]))["Y"]
    latents, gain = of.encoder(x)[1], of.gain(q)
    symbols = torch.round(latents * gain)
    side, spent = of.hyperprior(latents, None)
    mean, log_scale = of.prior(symbols / gain, side, q)
    bits = logistic_bits(symbols, mean * gain, log_scale + gain.log())[0]
    step_of = of.prior.step_of(*bits.shape[-2:])
    parts = {"hyperprior": float(spent)}
    parts |= {f"step {i + 1}": float(bits[step_of == i].sum()) for i in range(len(of.prior.last))}
    return parts, float(of(x, q, {}).estimated_bits)


# %%
rows = []
for name in names[2:]:
    for q in dial_values[::2]:
        parts = pd.DataFrame([bits_by_part(models[name], image, q)[0] for image in test]).sum()
        rows.append({"system": name, "dial": q} | (parts / parts.sum()).to_dict())
shares = pd.DataFrame(rows)
output.table("shares", shares, "Shares of the estimated bits by hyperprior and step.")
columns = [column for column in shares if column not in ("system", "dial")]

# %%
figure, (axes,) = figures.panels(1, 3, 10, 3.2, "Who spends the bits")
tones = ["#bbbbbb", *figures.sns.color_palette("YlGnBu", 4)]
for ax, (name, part) in zip(axes, shares.groupby("system", sort=False), strict=True):
    bottom = np.zeros(len(part))
    for column, tone in zip(columns, tones, strict=True):
        height = 100 * part[column].fillna(0).to_numpy()
        ax.bar([f"{q:g}" for q in part.dial], height, bottom=bottom, color=tone, label=column)
        bottom = bottom + height
    ax.set(title=name, xlabel="dial q", ylabel="share of bits (%)")
figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5)
output.figure("shares_bars", figure, "Figure 2b.5: share of bits by hyperprior and quadtree step.", shares)
plt.show()


# %% [markdown]
# Figure 2b.5: at the lowest dial the hyperprior takes 31 to 36 % of all bits, at the highest 4 to 5 %: its own symbols hardly depend on the dial, those of the latents do, so what it may cost depends on the rate. In D and E the steps code equal numbers of latents and spend less and less: at the lowest dial step 4 pays 0.7 of what step 1 pays, at the highest 0.9. That difference is what neighbours and other groups tell after some seconds of learning.

# %% [markdown]
# ## What hours make of it
#
# The released weights on the same pictures, with estimates for both kinds of code: `fusion` is the poster's, coded as its files are (one level everywhere, the ideal bits of its entropy coder); of the scalar ones the first is drawn, since all share their luma.

# %%
def coded_points(name, qualities=(5, 8, 12, 18, 27, 40, 60, 80, 100)):
    """Return a released binary model's points: ideal bits of its entropy coder, luma of its decodes."""
    codec, rows = get_codec(name), []
    for image, pixels in photographs.test.items():
        analysis = codec.analyse(pixels)
        for quality in qualities:  # percent of luma's groups of bits
            encoded = codec.pack(analysis, quality)
            error = luma(pixels) - codec.decode(encoded.data, luma_only=True)[..., 0]
            row = {"system": f"released, binary ({name})", "image": image}
            row |= {"estimated_bpp": encoded.ideal_bits["Y"] / error.size}
            rows.append(row | {"psnr_Y": psnr_from_mse(np.mean(error**2))})
    return rows


# %%
rows = coded_points("fusion")
scalars = dict(list(inspection.released_models("Y", quantizer="scalar").items())[:1])  # all share one luma
for name, model in scalars.items():
    rows += points(f"released, scalar ({name})", model)
hours = pd.concat([pd.DataFrame(rows), files.rename(columns={"bpp": "estimated_bpp"})])
drawn = pd.DataFrame(experiments.at_rates(hours.to_dict("records"), grid, ("psnr_Y",), "estimated_bpp"))

# %%
figure, ((left, right),) = figures.panels(1, 2, 10, 4.2, f"Released luma, {len(test)} photographs")
how = {"rate": "rate", "by": "system"}
figures.draw_curves(left, drawn, "psnr_Y", dashed=experiments.LUMA_QUALITIES, **how)
figures.draw_gains(right, drawn[drawn.system != "jpeg"], "psnr_Y", "jpeg2000", **how)
for ax in (left, right):
    ax.set(xlabel="bits per pixel: estimated (networks), of files (codecs)")
figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
caption = "Figure 2b.6: luma of released weights beside classical codecs, and gain over JPEG 2000."
output.figure("released", figure, caption, drawn)
plt.show()

# %% tags=["nbval-ignore-output"]
read = pd.DataFrame(experiments.at_rates(hours.to_dict("records"), rates, ("psnr_Y",), "estimated_bpp"))
output.table("released_at_rates", read, "Luma PSNR (dB) of released weights (estimates) and codecs (files).")
read.pivot(index="system", columns="rate", values=["psnr_Y", "extended"]).round(2)

# %% tags=["nbval-ignore-output"]
ratios = {name: [np.divide(*both_rates(m, q)) for q in dial_values] for name, m in scalars.items()}
pd.DataFrame(ratios, index=pd.Index(dial_values, name="noise / rounding at dial")).round(1)

# %% [markdown]
# Figure 2b.6: (right: decibels more than JPEG 2000 at equal bits) the released **binary** luma, hours of a CPU core, lies 0.6 to 0.7 dB above JPEG 2000 up to 0.3 bits per pixel, at AVIF's level there, and below both at 0.5, where its questions end as A's do. The released **scalar** luma, minutes of one GPU, lies 0.6 dB above it at 0.15 and 1.1 dB at 0.5, and 0.8 to 0.9 dB above AVIF, at 0.5 still 0.3. It was trained for structure and colour besides (MS-SSIM and a colour difference in its loss), which cost it decibels at the higher rates. (On pictures this small, headers cost AVIF's files some hundredths of a bit per pixel; on whole photographs the distance is smaller.) This is not one thing alone: the scalar networks are wider and saw many more patches. The ladder above is what separates the causes. The last table shows how far noise and rounding drift apart in this model (all three streams together): the encoder has learned to leave most latents within a fraction of a step, where rounding is free and noise is not.

# %% [markdown]
# ## Facts that must be equal on every machine

# %%
vectors = {"start": torch.cat([p.flatten() for p in stream.encoder.parameters()])}
for name in names[1:]:
    vectors[name[0]] = torch.cat([p.flatten() for p in models[name].streams["Y"].encoder.parameters()])
steps_of = {name[0]: len(models[name].streams["Y"].prior.last) for name in names[1:]}
parts, whole = bits_by_part(models[names[-1]], test[-1], 0.5)
ends = estimates.groupby(["system", "image"])[["estimated_bpp", "psnr_Y"]].agg(["first", "last"])
rising = [
    bool((ends[column]["last"] > ends[column]["first"]).all()) for column in ("estimated_bpp", "psnr_Y")
]
ahead = level.loc["B scalar latents", 0.5] - level.loc["A threshold code", 0.5]

# %% tags=["nbval-check-output"]
print("data", photographs.digest[:16], "train", len(train), "test", [image.shape for image in test])
print(
    "encoder as at the start:",
    {n: torch.equal(v, vectors["start"]) for n, v in vectors.items() if n in "BCDE"},
)
print("steps of the prior:", steps_of)
print("hyperprior and steps make up the estimate:", abs(sum(parts.values()) / whole - 1) < 1e-3)
print("a higher dial spends more bits and leaves less error, every system and picture:", rising)
print("scalars ahead of bits by more than half a decibel at 0.5 bpp:", bool(ahead > 0.5))

# %%
output.finish()
print("saved", len(list(output.folder.iterdir())), "files")

# %% [markdown]
# ## Summary
#
# - In minutes the poster's bits are no loss below 0.3 bits per pixel: a threshold code begins well, and whole numbers overtake it at 0.3 only with the whole prior (level at 0.3, 1.2 dB ahead at 0.5, 1 dB behind at 0.15; `cpu` profile). Trained to the end the order is clear: the released scalar luma, wider and longer trained, is 0.6 to 1.1 dB above the released binary one.
# - What is gained comes from the prior more than from the code: whole numbers without one lose 1.3 to 1.6 dB up to 0.3; hyperprior, four steps and learned encoder then save 13, 12 and 2 % of the bits.
# - A training step of scalar latents fits in a cell: noise where rates are counted, rounding straight through where the decoder looks. Noise overstates the cost of sure zeros, however well a prior is trained.
#
# **Limits.** Single seed; in the quick profile five training photographs and two crops to judge by, in the `cpu` profile minutes in place of days. Rates of networks are an ideal coder's estimates, those of JPEG, JPEG 2000 and AVIF (speed 6) are files with headers. A's context models estimate and its importance map is uniform; its quality at high rates is bounded by the number of its bits. Gains are frozen with the encoder in B to D.
#
# **Next.** `03_three_stream_training` freezes a luma and adds two colour streams.
