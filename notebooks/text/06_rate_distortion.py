# %% [markdown]
# # 6. Rate and distortion: the poster's table at real bytes
#
# **Question.** When every rate is the size of a file on disk, and every decode comes from that file alone, where do three streams with and without fusion stand, beside one another, beside the classical codecs and beside the poster's numbers?
#
# **Reads** a data set by name (`embedded`: photographs inside installed packages), released weights in `mcml/model/released`, `data/published/kodak_curves.csv` and `poster.csv`. **Writes** `results/<profile>/06_rate_distortion/`. **Run time** about 75 s (quick, one core), an hour and more (`cpu`, 24 Kodak pictures). **Answers** the poster's table, every column of it, at *equal* rates, which the poster's own rows do not have. Numbers in the text are the quick profile's, as committed.

# %% [markdown]
# ## What we expect
#
# Notebooks 02 to 04 counted what an ideal coder *would* need. A real file also has a header, checksums, and a coder that works with integers; together we expect them to cost **under 60 bytes and 1 %**. [7] reports that its entropy coder saves 11 to 21 % of the code's bits and 41 to 67 % of the importance map's; ours should save **far more** of the code, since its bits answer questions that overlap ("over 1?", "over 2?"). Against classical codecs a few hours of CPU should suffice to beat JPEG, at **0.15** bits per pixel by 2 dB and more, and not to reach AVIF (here at speed 6, its quick preset; speed 2 needs some 10 % fewer bytes). And the poster found 0.59 dB for fusion; on equal bytes we expect **less than half** of that.

# %% tags=["parameters"]
profile: str = "quick"  # name of the profile, a folder of results
dataset: str = "embedded"  # photographs to judge by: embedded, kodak, valid, or a folder of images
max_images: int = 2  # images to use, 0 means all
codecs: str = "fusion,independent,scalar_fusion,jpeg420,jpeg2000,webp,avif444_speed6"  # by commas
sweep_bpp: str = "0.15,0.2,0.3,0.5"  # bits per pixel of the files of the curves
equal_bpp: str = "0.15,0.3,0.5"  # bits per pixel of the table, some of those of the curves
anchors: str = "jpeg420,independent"  # codecs whose rate the others' is compared with
sample_image: str = ""  # image that is looked at and timed, empty means the first
target_bpp: float = 0.3  # bits per pixel of the files that are timed
qualities: str = "6,16,45"  # percentages of luma's groups, of the files whose bits are counted
repeats: int = 3  # timings of which the median counts
workers: int = 1  # processes, 0 means one for each core

# %% tags=["nbval-ignore-output"]
from time import perf_counter

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt

from mcml import codec, data, lab, metrics
from mcml.base.errors import choose
from mcml.base.files import repo_root
from mcml.codec import container
from mcml.codec.learned import LearnedCodec
from mcml.lab import accounting, figures
from mcml.lab.evaluate import LOWER_IS_BETTER, evaluate

torch.set_num_threads(1)
figures.use_style()
print(lab.banner(profile))

# %%
parameters = lab.check_parameters(
    profile=profile,
    dataset=dataset,
    max_images=max_images,
    codecs=codecs,
    sweep_bpp=sweep_bpp,
    equal_bpp=equal_bpp,
    anchors=anchors,
    sample_image=sample_image,
    target_bpp=target_bpp,
    qualities=qualities,
    repeats=repeats,
    workers=workers,
)

# %%
coders = {name: codec.get_codec(name) for name in lab.parse_names(codecs)}
learned = {name: coder for name, coder in coders.items() if isinstance(coder, LearnedCodec)}
anchor_names = [choose("anchor", name, coders) for name in lab.parse_names(anchors)]
rates, equal_rates = lab.parse_bpp_list(sweep_bpp), lab.parse_bpp_list(equal_bpp)
rates = sorted({*rates, target_bpp})  # the timed files are some of the curves'
percentages = lab.parse_numbers(qualities)
first, coder = next(iter(learned.items()))
photographs = data.image_set(dataset, max_images)
images = {path.stem: photographs.read(path.stem) for path in photographs.paths}
sample = sample_image or next(iter(images))
output = lab.Output("06_rate_distortion", profile, parameters, data_hash=photographs.digest)
print("images", ", ".join(images), "| learned codecs", ", ".join(learned))

# %% [markdown]
# ## A picture becomes a file
#
# Encoding takes three steps. The **networks** turn every 8 x 8 square into a few hundred bits, sorted into groups of falling worth. A number from 0 to 100, the **quality**, says how many of these groups are sent; it is turned by the user, and no network runs again for it. The **entropy coder** then writes the bits that are left, each with a probability that small integer networks guess from the bits before it: a bit that was foreseen with probability $p$ costs $-\log_2 p$ bits, next to nothing when $p$ is near 1. Decoding asks the same integer networks the same questions in the same order, gets the same bits, and hands them to the decoders.
#
# So one weight file makes files of any size. Here is one photograph from little to much.

# %%
original, shown, sizes = images[sample], {}, []
for quality in percentages:
    file = coder.encode(original, quality)
    bpp = 8 * len(file) / original[..., 0].size
    shown[f"quality {quality:g}\n{len(file)} bytes, {bpp:.3f} bpp"] = coder.decode(file)
    sizes.append({"quality": quality, "file_bytes": len(file), "bpp": bpp})
lost = metrics.artifact_maps(original, next(iter(shown.values())))["blur"]
squares = {"whole, reduced": (0, 0, max(original.shape))} | metrics.worst_boxes({"enlarged": lost}, 72)
title = f"'{sample}' by {first}, and the square that loses most detail"
figure = figures.zooms(original, shown, squares, title, width=11.6)
caption = "Figure 6.1: one photograph at several qualities, one weight file: whole, and a detail enlarged."
output.figure("one_dial", figure, caption, sizes)
plt.show()

# %% [markdown]
# Figure 6.1: the original has 24 bits for every pixel; above each decode stands what is left of them. First the fine texture goes (below: the square of 72 pixels that loses most), then small colours, last the shapes.

# %% [markdown]
# ## What the bytes hold
#
# A file has a header, and for every stream a chunk of coded bits; an **adaptive** file has a chunk for each importance map besides, which says at each place how many groups follow. A **uniform** file sends no maps: every place gets the same number of groups, or one of two neighbouring numbers in a fixed pattern. *Before* coding, a bit costs one bit and a level of the map log2 L bits; *after* it, each costs $-\log_2 p$. The difference is what the entropy coder saves, and [7] has published it for its own.

# %%
bits = pd.DataFrame(accounting.bit_rows(coder, images, percentages))
output.table("bits", bits, f"Bits of every part of every file of {first}, before and after entropy coding.")
bits["what"] = bits.part.map(lambda part: "maps" if part.endswith("map") else "code")
coded = bits[bits.raw_bits > 0].groupby(["kind", "what", "quality"])[["raw_bits", "coded_bits"]].sum()
coded["saved %"] = 100 * (1 - coded.coded_bits / coded.raw_bits)
output.table("savings", coded.reset_index(), "Share of the bits that entropy coding saves, code and maps.")
coded["saved %"].unstack().round(0).astype(int)

# %%
middle = percentages[len(percentages) // 2]
parts = bits[(bits.quality == middle) & (bits.raw_bits > 0)].groupby(["kind", "part"], sort=False)
per_pixel = parts[["raw_bits", "coded_bits", "pixels"]].sum()
per_pixel = per_pixel.div(per_pixel.pop("pixels"), axis=0).set_axis(["before", "after"], axis=1)
saved = 100 * (1 - per_pixel.after / per_pixel.before)
title = f"{first} at quality {middle:g}: entropy coding saves {saved.min():.0f} to {saved.max():.0f} %"
figure, axes = figures.panels(1, 2, 10, 3.4, title)
for ax, (kind, table) in zip(axes.flat, per_pixel.groupby("kind", sort=False), strict=True):
    table.droplevel("kind").plot.barh(ax=ax, title=kind, color=["#bbbbbb", figures.HUES[0]], legend=False)
    ax.bar_label(ax.containers[1], [f"{s:.0f} % saved" for s in saved[kind]], padding=4, fontsize="small")
    ax.set(xlabel="bits per pixel", ylabel="", xlim=(0, 1.05 * per_pixel.to_numpy().max()))
    ax.yaxis.set_inverted(True)
figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
output.figure("saved_bits", figure, "Figure 6.2: bits before and after coding.", per_pixel.reset_index())
plt.show()

# %% [markdown]
# [7], by its authors' bit counts, saves 11 to 21 % of the code and 41 to 67 % of the map.
#
# Figure 6.2: [7]'s bits come from an encoder that was trained to make each of them worth its price, so little is left to save. Ours start from thresholds on the same coefficient, where a "no" to "over 1?" makes "over 2?" a sure "no"; their large saving, 85 to 92 %, makes up for a wordy alphabet and is **no merit of the coder** over [7]'s. What counts is the length of the file. The maps compare better, since their alphabet is the same kind; even so a map that says little codes well. Framing and the range coder's own loss are left out here: a few dozen bytes a file, Figure 6.3.

# %% [markdown]
# ## Do the maps pay?
#
# An importance map sends more groups where the picture is busy; that costs the map itself. Whether it is worth its bits is decided by decodes: the same pictures with maps and without, and the rate difference at equal quality (explained below). Where bits have unequal odds, a uniform file already spends its bytes on the busy places: in a smooth square nearly every bit is foreseen and costs next to nothing. [7]'s balanced bits cost one bit wherever they are sent, so there a map must pay.

# %%
kinds = accounting.file_rows({first: first}, images, percentages, kinds=accounting.KINDS, workers=workers)
kinds = pd.DataFrame(kinds).assign(codec=lambda t: t.kind)
output.table("maps", kinds, "Files with and without importance maps: bytes, PSNR by plane, CIEDE2000.")
kind_means = kinds.groupby(["codec", "quality"], sort=False).mean(numeric_only=True).reset_index()
shown = {"bpp": 2, "psnr": 1, "psnr_Y": 1, "psnr_Cb": 1, "psnr_Cr": 1, "ciede2000": 1}
kind_means.set_index(["codec", "quality"])[list(shown)].round(shown)

# %%
price = pd.concat([lab.bd_rate(kind_means, "uniform", column) for column in ("psnr", "ciede2000")])
price[price.codec == "adaptive"].set_index("column")[["bd_rate_percent", "overlap"]].round(
    {"bd_rate_percent": 0, "overlap": 1}
)

# %% [markdown]
# A positive percentage is the price of the maps: at equal PSNR the files with maps are longer by about a fifth, at equal CIEDE2000 by more than a third. The networks at hand are better served without; all other files of this notebook are uniform.

# %% [markdown]
# ## Estimate and file
#
# All rates of notebooks 02 to 04 are ideal code lengths, $-\sum \log_2 p$. A file is longer by the framing (header, lengths, a checksum for each chunk) and by what the range coder loses: its last word is whole, and its probabilities are rounded. One dot is one file.

# %%
files = ["image", "kind", "quality", "file_bits"]
coded = bits.pivot_table("coded_bits", files, "part", sort=False)
ideal = coded.drop(columns=["framing", "coder"])  # a column a chunk
totals = pd.DataFrame({"ideal_bytes": ideal.sum(axis=1) / 8, "framing_bytes": coded.framing / 8})
most = 0.01 * ideal.sum(axis=1) + 32 * ideal.count(axis=1)  # 1 %, and a last word of 32 bits a chunk
totals["holds"] = coded.coder.between(-0.01 * ideal.sum(axis=1), most)
totals = totals.reset_index()
totals.insert(5, "file_bytes", totals.pop("file_bits") // 8)
output.table("estimates", totals, "Ideal code length, framing and bytes of every file.")

# %%
figure, axes = figures.panels(1, 1, 9, 3.6, "What a file has besides the ideal code length")
for kind, part in totals.groupby("kind", sort=False):
    mark = {key: figures.look(f"{kind} map")[key] for key in ("color", "marker")}
    above, framing = part.file_bytes - part.ideal_bytes, part.framing_bytes.mean()
    axes[0, 0].scatter(part.ideal_bytes, above, s=40, label=f"{kind} file", **mark)
    line = {"color": mark["color"], "lw": 1.2, "ls": ":", "label": f"its framing, {framing:.0f} bytes"}
    axes[0, 0].axhline(framing, **line)
sizes = np.sort(totals.ideal_bytes)
axes[0, 0].plot(sizes, 60 + 0.01 * sizes, color="#888888", label="expected at most: 60 bytes + 1 %")
axes[0, 0].set(xlabel="estimate: ideal code length (bytes)", ylabel="bytes above it", ylim=(0, None))
figure.legend(loc="outside right center")
output.figure("overhead", figure, "Figure 6.3: bytes above the estimate, a mark a file.", totals)
plt.show()

# %%
totals["excess_bytes"] = totals.file_bytes - totals.ideal_bytes
totals["excess_percent"] = 100 * totals.excess_bytes / totals.file_bytes
wide = totals.pivot(index=["image", "kind"], columns="quality", values=["file_bytes", "excess_percent"])
shown = {c: 250 if c[0] == "file_bytes" else 1 for c in wide.columns}  # some may differ elsewhere
(wide.div(shown).round() * pd.Series(shown)).astype(int)

# %% [markdown]
# Figure 6.3: the dotted line is the framing, the same for every file of a kind; what lies above it is the range coder's own loss, 5 to 35 bytes, which grows slowly with the file. All lie below the 60 bytes and 1 % that we expected, but for the smallest file with maps, which reaches it. Estimates may therefore be trusted as file sizes of pictures like these; on thumbnails of a few hundred bytes the framing would weigh.

# %% [markdown]
# ## Curves at real bytes
#
# Every codec's quality is searched until its **file** has the wanted number of bits per pixel, and the decode of *that file* is measured. The six panels are the poster's columns and their modern relatives: PSNR and MS-SSIM for signal and structure; CMSSIM, which multiplies structure with the share of pixels whose colour is right to within one just-noticeable difference; CIE76 ("Lab" in the poster) and CIEDE2000 for visible colour differences; the angle between RGB vectors, a difference of hue that brightness leaves alone.

# %%
table = evaluate(photographs.paths, list(coders), rates, workers=workers)
output.table("metrics_by_image", table, "Every metric of every photograph, codec and rate.")
means = lab.mean_table(table)
output.table("metrics", means, f"Mean over {len(images)} photographs, by codec and rate.")
columns = ["psnr", "ms_ssim", "cmssim", "delta_e76", "ciede2000", "rgb_angle"]
title = f"Mean of {len(images)} photographs, bytes of whole files"
figure = figures.rate_distortion(means, columns, title)
output.figure("curves", figure, "Figure 6.4: six distortions over the rate of files.", means)
plt.show()

# %%
print("\n".join(lab.misses(table)) or "every file within 2 % of the wanted rate")

# %% [markdown]
# Figure 6.4: networks are drawn bold, classical codecs thin (`scalar_fusion` is the poster's streams with scalar latents); `independent` is the broad pale line behind, so that two equal curves are both seen. Each title says which direction is better. Where fusion and independent lie on one another, borrowing luma changes nothing; their files hold the same bits (checked below), so that any distance is due to the colour decoders. Compare the order of the codecs between panels, too: a codec may lead in PSNR and trail in colour.

# %% [markdown]
# ## At equal rates
#
# The poster's table, each column of it, at equal bytes. Where a codec's dial ends above a rate or its steps are coarse, `bpp` says what its files have instead, and its row is that much better or worse off.

# %%
shown = {"bpp": 2, "mse": 0, "psnr": 1, "y_psnr": 1, "ssim": 2, "ms_ssim": 2, "cmssim": 2,
         "delta_e76": 1, "ciede2000": 1, "rgb_angle": 1, "psnr_b": 1}  # fmt: skip
equal = means[means.target_bpp.isin(equal_rates)].sort_values("target_bpp", kind="stable")
equal = equal[["target_bpp", "codec", *shown]]
output.table("equal_rates", equal, f"All columns at {equal_bpp} bpp of files, mean over photographs.")
equal.set_index(["target_bpp", "codec"]).round(shown)

# %%
gains = equal.pivot(
    index="codec", columns="target_bpp", values=["psnr", "delta_e76", "ciede2000", "rgb_angle"]
)
gains = (gains.loc[first] - gains).drop(index=first)
output.table("gains", gains.stack(future_stack=True).reset_index(), f"What {first} has more than each codec.")
gains.round(1) + 0.0

# %% [markdown]
# A row says what `fusion` has more than that codec: more decibels are a gain, and so is *less* colour difference. Three streams with fusion beat JPEG by more than 2 dB at each rate, JPEG 2000 at the lower ones only, and stay behind AVIF in decibels; in colour differences the two lie within 0.2 of each other, and at 0.3 bits per pixel the RGB angle of `fusion` is the smaller one, by 0.1 degree. The poster's step from "no fusion" to "with fusion" was +0.59 dB, Lab -0.10, angle -0.25 degrees, at 3 % *more* bits; the row `independent` is that step here, at equal bytes: nothing in the first decimal of the decibels, and next to nothing in the colour differences. The row `scalar_fusion` is another step: the same streams with whole numbers in place of bits, wider and trained for minutes of a GPU, are 1.0 to 1.2 dB and 0.3 to 0.6 of CIEDE2000 better.

# %% [markdown]
# ## On Kodak, beside strong presets
#
# Few pictures and fast presets prove little, so the 24 Kodak pictures were coded once by every codec at hand, slow ones included: AVIF at speed 2 as well as 6, HEVC intra by x265 `veryslow` (about BPG 4:4:4) and VVC intra by VVenC `medium`, which take seconds and minutes a picture. Each picture is read on its own curve of files at the same number of bytes, by cubic interpolation over the logarithm of the rate, and then the mean is taken. The tables are kept in `results/released/rate_distortion_kodak`, with the command of every run in its `run.json`.

# %%
kept = repo_root() / "results" / "released" / "rate_distortion_kodak"
kodak_means, kodak_savings = (pd.read_csv(kept / f"{name}.csv") for name in ("means", "bd_rate"))
strong = ["scalar_fusion", "fusion", "jpeg444", "jpeg2000", "webp", "avif444_speed6"]
strong += [name for name in ("avif444", "hevc444", "vvc420") if name in set(kodak_means.codec)]
by_rate = kodak_means[kodak_means.codec.isin(strong)].set_index(["bpp", "codec"])[list(columns)]
gain = by_rate.sub(by_rate.xs("avif444_speed6", level="codec"), level="bpp")
gain *= [-1 if column in LOWER_IS_BETTER else 1 for column in columns]

# %%
figure, axes = figures.panels(2, 3, 11, 7.2, "24 Kodak pictures: gain over AVIF (speed 6) at equal bytes")
near = gain.drop(["jpeg444", "jpeg2000", "webp"], level="codec")
for ax, column in zip(axes.flat, columns, strict=True):
    figures.draw_curves(ax, gain.dropna(subset=column).reset_index(), column)
    low, high = near[column].min(), near[column].max()
    ax.set(ylim=(1.3 * low - 0.3 * high, 1.1 * high - 0.1 * low), title=figures.LABELS[column])
    ax.set(ylabel="gain, better is up", xticks=[0.1, 0.3, 0.5, 0.75, 1.0])
figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5)
caption = "Figure 6.5: six distortions on Kodak, less AVIF's at speed 6, signs turned so that up is better."
output.figure("kodak_curves", figure, caption, gain.reset_index())
plt.show()

# %% [markdown]
# Figure 6.5: differences, so that curves which lie close are seen apart: the line at 0 is AVIF at speed 6, up is better (`jpeg444` lies below most panels). The quick profile's order is not the whole story. On Kodak `scalar_fusion` is above AVIF at speed 6 in all six panels from 0.15 to 0.3 bits per pixel (28.20 against 28.08 dB at 0.15, 30.60 against 30.54 at 0.3), and its lead is in colour: a CIEDE2000 of 2.68 at 0.3, where AVIF has 3.00 at speed 6 and 2.88 at speed 2, HEVC 2.95 and VVC, which halves the resolution of colour, 2.84. In PSNR the slow presets are ahead (at 0.3 AVIF by 0.4 dB, HEVC by 0.9, VVC by 1.6), and its own curve flattens: from 0.5 bits per pixel on AVIF at speed 6 is ahead too, from 0.75 on JPEG 2000. `fusion`, the poster's bits, beats JPEG everywhere, and JPEG 2000 from 0.15 bits per pixel on in MS-SSIM, Lab, CIEDE2000 and angle, not in PSNR.

# %%
at = kodak_means[
    kodak_means.bpp.isin((0.15, 0.3, 0.5)) & kodak_means.codec.isin([*strong, "scalar_independent"])
]
at.set_index(["bpp", "codec"]).sort_index(level=0, sort_remaining=False)[list(columns)].round(
    {"psnr": 2, "ms_ssim": 3, "cmssim": 3, "delta_e76": 2, "ciede2000": 2, "rgb_angle": 2}
)

# %%
rate = kodak_savings[kodak_savings.codec.isin([*strong, "scalar_independent"])]
rate.pivot_table("bd_rate_percent", "codec", ["anchor", "column"], sort=False).round(1)

# %% [markdown]
# A negative number is a saving: at equal CIEDE2000 `scalar_fusion` needs a sixth fewer bytes than AVIF at its slow preset and over a third fewer than JPEG 2000; at equal PSNR it needs 10 % fewer than JPEG 2000 and some 15 % more than slow AVIF.

# %% [markdown]
# ## Rate for equal quality
#
# Turned around: how many per cent fewer (negative) or more bits does a codec need for the *same* quality? The Bjontegaard rate difference averages the horizontal distance between two curves, in the logarithm of the rate, over the range of quality that both cover. `overlap` is the share of that range: where it is small, a codec is better or worse by so much that the curves hardly meet, and the percentage is a hint.

# %%
judged = ("psnr", "ms_ssim", "ciede2000")
savings = pd.concat([lab.bd_rate(means, anchor, c) for anchor in anchor_names for c in judged])
output.table("bd_rate", savings, "Bjontegaard rate difference (%) to each anchor, and overlap of the curves.")
wide = savings.pivot(index=["anchor", "codec"], columns="column", values=["bd_rate_percent", "overlap"])
wide.round({c: 0 if c[0] == "bd_rate_percent" else 1 for c in wide.columns}) + 0.0


# %% [markdown]
# ## Seconds
#
# Encoding and decoding of one photograph, on one thread, codec after codec in turn, medians; networks are loaded and have run once before the clock starts. The machine may be busy with other things, so read *ratios*. A network's time has two parts, the convolutions ("networks") and the integer context models with the range coder ("entropy"); the classical codecs are one piece of compiled C ("all").

# %%
def seconds_of(name, quality):
    """Seconds of encoding and of decoding the sample once, by phase."""
    used = coders[name]
    if name in learned:
        encoded = used.pack(used.analyse(original), quality)
        return {"encode": encoded.seconds, "decode": used.decode_detailed(encoded.data).seconds}
    began = perf_counter()
    file = used.encode(original, quality)
    middle = perf_counter()
    used.decode(file)
    return {"encode": {"all": middle - began}, "decode": {"all": perf_counter() - middle}}


timed = table[(table.image == sample) & (table.target_bpp == target_bpp)].set_index("codec")

# %%
for name, file in timed.iterrows():
    seconds_of(name, file.quality)  # networks are loaded now
rows = [
    {"codec": name, "direction": way, "phase": phase, "seconds": seconds, "bpp": file.bpp}
    for _ in range(repeats)  # in turn, so that a busy machine slows all codecs alike
    for name, file in timed.iterrows()
    for way, phases in seconds_of(name, file.quality).items()
    for phase, seconds in phases.items()
]
speed = pd.DataFrame(rows).groupby(["codec", "direction", "phase"], sort=False).median().reset_index()
output.table("seconds", speed, f"Seconds, '{sample}' at {target_bpp} bpp, one thread, medians of {repeats}.")

# %% tags=["nbval-ignore-output"]
total = speed.groupby(["codec", "direction"]).seconds.sum().unstack().loc[list(coders)]
ratio = (total.decode / total.encode).groupby(total.index.isin(list(learned))).agg(["min", "max"]).round(2)
of_learned = speed[speed.codec.isin(list(learned))].assign(way=lambda t: t.codec + ", " + t.direction)
phases = of_learned.pivot(index="way", columns="phase", values="seconds")
title = "Decoding takes {} to {} of encoding's time in learned codecs, {} to {} in classical ones"
title = title.format(*ratio.loc[True], *ratio.loc[False])

# %% tags=["nbval-ignore-output"]
figure, ((left, right),) = figures.panels(1, 2, 11, 3.9, title)
for i, name in enumerate(coders):
    style = figures.look(name) | {"linestyle": "", "markersize": 8, "alpha": 1}
    left.plot(total.loc[name], [i, i], color=style["color"], lw=1)
    left.plot(total.encode[name], i, **style)
    left.plot(total.decode[name], i, **style, markerfacecolor="white", markeredgewidth=1.6)
left.set_yticks(range(len(coders)), list(coders))
left.set(xscale="log", xlabel="seconds, median", title="filled: encode, hollow: decode")
phases = phases.loc[[f"{n}, {way}" for n in learned for way in ("encode", "decode")], ["networks", "entropy"]]
phases.plot.barh(stacked=True, ax=right, color=["#999999", "#332288"])
right.invert_yaxis()
right.set(xlabel="seconds, median", ylabel="", title="learned codecs, by phase")
left.invert_yaxis()
output.figure("seconds_bars", figure, "Figure 6.6: seconds of encoding and of decoding.", speed)
plt.show()

# %% tags=["nbval-ignore-output"]
total = speed.groupby(["direction", "codec"]).seconds.sum().unstack()
ratios = {f"{name} over": total.div(total[name], axis=0).rdiv(1) for name in learned}
pd.concat(ratios).drop(columns=list(learned)).round(1)

# %% [markdown]
# Figure 6.6: a file of the binary codecs costs the decoder as much as the encoder or a little more, one of `scalar_fusion` about half, its encoder being the wider network. That is unlike JPEG 2000, WebP and AVIF, which search in the encoder and only follow orders in the decoder, in a fifth of the time or far less; JPEG searches little, and its decoder takes about as long as its encoder. A 15-block fusion decoder also reads luma's bits, so its networks take a little longer than the independent ones'.

# %% [markdown]
# ## Published curves, for context
#
# Numbers of others, as published, on the 24 Kodak pictures (`data/published/SOURCES.md` names repository, commit and licence of each). They are drawn apart from ours: the pictures are the same, but the left panels hold files made and measured here (table `kodak_curves`), the right ones what others report of their own encoders and metrics. A format has one colour in both: `vvc420` and VTM (VVC, 4:4:4), `hevc444` and BPG. CWIC is the journal successor of [7]; its rate is an estimate.

# %%
published = pd.read_csv(repo_root() / "data" / "published" / "kodak_curves.csv")
measured = kodak_means[kodak_means.codec.isin([*strong, "independent"])]
in_db = [t.assign(ms_ssim=-10 * np.log10(1 - t.ms_ssim)) for t in (measured, published)]

# %%
figure, axes = figures.panels(2, 2, 11, 8.6, "The same 24 Kodak pictures")
for column, row in zip(("psnr", "ms_ssim"), axes, strict=True):
    for ax, curves, who in zip(row, in_db, ("measured here", "published by others"), strict=True):
        dashed = () if curves is in_db[0] else set(published.codec)
        figures.draw_curves(ax, curves.dropna(subset=column), column, dashed=dashed)
        ax.set(xlim=(0, 1.05), ylim=(24, 40) if column == "psnr" else (8, 21), title=who)
    row[0].set_ylabel({"psnr": "RGB PSNR (dB)"}.get(column, "-10 log10(1 - MS-SSIM) (dB)"))
    row[1].set(ylabel="", xlabel="bits per pixel")
for ax in axes[0]:
    ax.legend(loc="lower right", ncols=2, fontsize="small")
caption = "Figure 6.7: rate and distortion on Kodak: files measured here, and curves published by others."
output.figure("published", figure, caption, pd.concat(in_db))
plt.show()

# %% [markdown]
# Figure 6.7: solid curves are of files measured here, dashed ones are published (CWIC's rate is an estimate, Cool-chic's is not stated to be of files). MS-SSIM is drawn in decibels, $-10 \log_{10}(1 - \text{MS-SSIM})$, since all of them are near 1. At 0.3 bits per pixel `scalar_fusion` has 30.6 dB, beside 29.8 of the published factorized prior, 30.7 of the hyperprior and 31.8 to 32.3 of cheng2020, VTM and Cool-chic; in MS-SSIM, 14.3 dB, it is 0.4 dB below the best of them, cheng2020. At 0.5 it is ahead of the JPEGs, WebP and the factorized prior alone in PSNR. `fusion` stays a decibel below, near the factorized prior. The learned codecs among the published were trained for days on GPUs; ours for a few hours on CPU cores, with bits from thresholds, or, `scalar_fusion`, for sixteen minutes on one GPU.
#
# The poster's own rows, as printed, belong here as well: on unknown pictures, at three different rates, with an MSE and a PSNR that are not of one convention (an MSE of 49.436 would be 31.19 dB).

# %%
poster = pd.read_csv(repo_root() / "data" / "published" / "poster.csv")
poster


# %% [markdown]
# ## Facts that must be equal on every machine
#
# A decode is only worth measuring if the file holds what the encoder meant. Each file carries a digest of the coded integers, which the decoder checks; here they are compared one by one as well.

# %%
def survives(image, quality, adaptive):
    """Whether a file gives back each level and each opened bit that the encoder meant."""
    tiles, analysis = coder.coder, coder.analyse(image)
    header, chunks = container.read(coder.pack(analysis, quality, adaptive=adaptive).data)
    checks = []
    for key, (packed, opened) in tiles.read(header, chunks)[0].items():
        if adaptive:
            levels = tiles.adaptive(key, analysis.logits[key], quality)
        else:
            levels = tiles.uniform(header, key)
        mask = np.packbits(tiles.channel_groups(key) <= levels[..., None], axis=-1)
        checks += [np.array_equal(opened, levels), np.array_equal(packed, analysis.bits[key] & mask)]
    return all(checks)


# %% tags=["nbval-check-output"]
print("data", photographs.digest[:16], {name: image.shape for name, image in images.items()})
low = percentages[0]
survived = [survives(image, low, adaptive) for image in images.values() for adaptive in (False, True)]
print(f"files of {first} that give back each level and bit:", sum(survived), "of", len(survived))
held = f"{totals.holds.sum()} of {len(totals)}"
print("files within 1 % of their estimate, a word a chunk, and framing:", held)
print("framing, bytes:", totals.groupby("kind", sort=False).framing_bytes.max().astype(int).to_dict())

# %% tags=["nbval-check-output"]
same = []
for image in images.values():
    files = {name: c.encode(image, low) for name, c in learned.items() if not c.scalar}
    chunks = [container.read(file)[1] for file in files.values()]
    same += [other == chunks[0] for other in chunks[1:]]
print(f"files with the very same bits as {first}'s:", sum(same), "of", len(same))
print("published curves:", published.codec.nunique(), "with", len(published), "points")

# %%
output.finish()
print("saved", ", ".join(sorted(path.name for path in output.folder.iterdir())))

# %% [markdown]
# ## Summary
#
# - The rates of the networks are now bytes of files, from which every number here was decoded; a file is its estimate but for a header, checksums and well under one per cent, so estimates of this kind are sound.
# - The poster's table stands at equal rates (table `equal_rates`), with all its columns and classical codecs beside; with and without fusion the files hold the very same bits, so the printed differences are the fusion network's alone.
# - With scalar latents the poster's three streams are ahead of AVIF at its slow preset, of HEVC and of VVC in every colour difference on Kodak up to 0.5 bits per pixel, and behind them in PSNR.
#
# **Limits.** One set of released weights of each kind (single seed); few photographs in the quick profile, the 24 Kodak pictures in `cpu`; seconds measured on whatever machine this is; AVIF (speed 6) and WebP at one effort. Published curves are others' numbers on Kodak. Pixels come from floating-point networks and may differ by a level between machines; the integers in the files do not.
#
# **Next.** Notebook 04 trains small networks of equal cost, the joint RGB network of [7] among them. `mcml evaluate` gives these tables for your own photographs; `mcml compress` and `mcml decompress` make and read the files.
