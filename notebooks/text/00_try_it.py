# %% [markdown] tags=["article"]
# # 0. Try it: one picture, any codec, any rate, down to single pixels
#
# **Question.** What does a picture look like when it is squeezed into a tenth, a fiftieth, a two-hundredth of its bytes, by the codecs of this collection and by those that everybody has?
#
# **Reads** a data set by name, the released models, and a photograph of your own if you give one. **Writes** `results/<profile>/00_try_it/`. **Run time** about half a minute, and then as long as you like: the sliders wait for you (`make explore` shows them alone, as a page in your browser). **Answers** nothing of the poster by itself: it is where to look before the measuring begins in notebook 01. Numbers in the text are the quick profile's, as committed.

# %% [markdown] tags=["article"]
# ## What we expect
#
# A colour picture takes 24 bits a pixel as a screen holds it. We expect `scalar_fusion`, the poster's three streams and their fusion with scalar latents, to need **0.3 bits a pixel**, an eightieth, for a picture that looks right from a step away, and JPEG to need more than **twice** that for the same mean colour difference (CIEDE2000). Of such a file colour's two streams should take **less than a fifth**. And since the networks look at a picture only once, we expect a step of the slider, which codes and decodes the whole picture anew, to take **less than half a second** at 768 x 512.

# %% tags=["parameters"]
profile: str = "quick"  # name of the profile, a folder of results
dataset: str = "embedded"  # embedded, kodak, train, valid, or a folder of images
max_images: int = 0  # images to choose from, 0 means all
sample_image: str = "chelsea"  # image that is looked at first, empty means the first
codecs: str = "scalar_fusion,scalar_independent,fusion,independent,jpeg444,jpeg2000,webp,avif444_speed6,jpegxl"  # to choose from  # noqa: E501
target_bpp: float = 0.3  # bits per pixel at which the explorer opens
zoom_px: int = 64  # side of the enlarged details, pixels
side_px: int = 768  # longest side of a photograph of your own, larger ones are reduced

# %% tags=["nbval-ignore-output"]
import asyncio
from html import escape
from types import SimpleNamespace

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from IPython.display import display
from matplotlib import colormaps, pyplot as plt
from PIL import Image

from mcml import codec, data, lab, metrics
from mcml.base.errors import McmlError
from mcml.data.images import decode_image
from mcml.lab import figures
from mcml.lab.curtain import Curtain, lossless, static_curtain
from mcml.lab.explorer import PLACES, Explorer
from mcml.metrics.distortion import psnr_from_mse

figures.use_style()
print(lab.banner(profile))

# %%
parameters = lab.check_parameters(
    profile=profile,
    dataset=dataset,
    max_images=max_images,
    sample_image=sample_image,
    codecs=codecs,
    target_bpp=target_bpp,
    zoom_px=zoom_px,
    side_px=side_px,
)
first, *_ = coders = lab.parse_names(codecs)
photographs = data.image_set(dataset, max_images)
sample = sample_image or photographs.paths[0].stem
pictures = {path.stem: lambda name=path.stem: photographs.read(name) for path in photographs.paths}
output = lab.Output("00_try_it", profile, parameters, data_hash=photographs.digest)


def reduced(image):
    """Return a picture with sides of at most `side_px`."""
    image = Image.fromarray(image)
    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    return np.asarray(image)


original = reduced(photographs.read(sample))

# %% [markdown]
# ## Try it
#
# Choose a picture, or bring one of your own; choose a codec; move the slider: from the fewest bytes that the codec can write on the left to the most on the right. Drag the line between the original (left) and the decoded file (right), zoom in to single pixels, and let the buttons show you the worst places. Keys: arrows move the line or the picture, + and - zoom, 0 shows the whole. Your photograph stays on this machine.

# %%
WORST = ("blocking", "ringing", "blur", "colour bias")
wide, row = {"layout": widgets.Layout(width="100%")}, {"layout": widgets.Layout(flex_flow="row wrap")}
shown = Curtain(before=lossless(original))
picture = widgets.Dropdown(options=list(pictures), value=sample, description="picture")
upload = widgets.FileUpload(accept="image/*", description="your own")
coder = widgets.Dropdown(options=coders, description="codec")
rate = widgets.IntSlider(description="quality", max=PLACES, readout=False, **wide)
heat = widgets.ToggleButton(description="CIEDE2000 map")
worst = [widgets.Button(description=kind, tooltip=f"show the worst {kind}") for kind in WORST]
note, measured = widgets.HTML(), widgets.HTML()
top, tools = widgets.HBox([picture, upload, coder], **row), widgets.HBox([heat, *worst], **row)
plain = widgets.HTML("<style>body[data-voila] .celltag_nbval-ignore-output pre {display: none}</style>")
app = widgets.VBox([plain, top, rate, note, shown, tools, measured])


# %% [markdown] tags=["article"]
# What follows makes them work. An `Explorer` runs the analysis networks over a picture **once**; a step of the slider then only rounds, codes and counts the symbols at the new rate and runs the synthesis networks on them, which is the file's decode without reading the file back (a test holds the two equal, pixel for pixel). Steps that were taken are kept. While the kernel is busy with one step, the browser holds back all but the last position of the slider, so that steps never pile up.

# %%
def difference():
    """Return the CIEDE2000 of every pixel as a picture: black nothing, white 15 and more."""
    spaces = map(metrics.rgb_to_lab, (now.explorer.image, now.step.image))
    return (255 * colormaps["magma"](metrics.ciede2000_map(*spaces) / 15)[..., :3]).astype(np.uint8)


def measure():
    """Measure the pair by every metric; called when the slider rests."""
    row = metrics.compare(now.explorer.image, now.step.image)
    style = "display:inline-block;min-width:11em"
    texts = (f"<span style='{style}'>{name} <b>{value:.3f}</b></span>" for name, value in vars(row).items())
    measured.value = " ".join(texts)


# %%
def show(change=None):
    """Code and decode at the slider's place."""
    step = now.step = now.explorer.place(rate.value)
    file = f"{step.bpp:.3f} bpp, {len(step.data):,} bytes"
    now.bpp = step.bpp if change and change.owner is rate else now.bpp  # where another codec begins
    with shown.hold_sync():
        shown.after_name = "CIEDE2000" if heat.value else f"{now.name}, {step.bpp:.2f} bpp"
        shown.after = lossless(difference() if heat.value else step.image)
    parts = ", ".join(f"{part} {size:,}" for part, size in step.parts.items())
    psnr = psnr_from_mse(np.mean((now.explorer.image - step.image.astype(float)) ** 2))
    times = f"coded in {step.seconds['code']:.2f} s, decoded in {step.seconds['decode']:.2f} s"
    note.value = f"<b>{file}</b> (1 : {24 / step.bpp:.0f}), PSNR {psnr:.1f} dB<br>bytes: {parts}; {times}"
    measured.value = "measuring ..."
    now.timer.cancel()  # of the place before
    now.timer = asyncio.get_running_loop().call_later(0.5, measure)


# %%
def quietly(widget, observer, **values):
    """Set a widget without telling its observer."""
    widget.unobserve(observer, "value")
    for name, value in values.items():
        setattr(widget, name, value)
    widget.observe(observer, "value")


# %%
def choose(change=None):
    """Analyse the picture chosen by the codec chosen; begin at as many bits per pixel as before."""
    note.value, measured.value = "looking at the picture ...", ""
    try:
        explorer = Explorer(reduced(pictures[picture.value]()), coder.value)
        quietly(rate, show, value=explorer.position(now.bpp))
    except McmlError as error:
        note.value = f"<b>{escape(str(error))}</b> What is shown is the one before."
        return
    now.explorer, now.name = explorer, coder.value
    with shown.hold_sync():
        shown.before = lossless(explorer.image)
        show()
    if change is None or change.owner is picture:
        shown.look()  # at all of it


# %%
def read(_):
    """Take photographs of one's own in their right colours, on white where they are transparent."""
    for file in upload.value:
        try:
            own = decode_image(bytes(file.content), file.name, (255, 255, 255))
        except McmlError as error:
            note.value = f"<b>{escape(str(error))}</b>"
            continue
        pictures[file.name] = lambda own=own: own
        quietly(picture, choose, options=list(pictures), value=file.name)
        choose()
    upload.value = ()


# %%
def jump(button):
    """Show the square of the picture where the button's artefact is largest."""
    maps = metrics.artifact_maps(now.explorer.image, now.step.image)
    shown.look(metrics.worst_boxes(maps, zoom_px)[button.description])


now = SimpleNamespace(bpp=target_bpp, timer=asyncio.get_running_loop().call_later(0, lambda: None))
for one in (picture, coder):
    one.observe(choose, "value")
for one in worst:
    one.on_click(jump)
for one in (rate, heat):
    one.observe(show, "value")
upload.observe(read, "value")
choose()

# %% tags=["nbval-ignore-output"]
still = static_curtain(now.explorer.image, now.step.image, shown.before_name, shown.after_name)
display({**app._repr_mimebundle_(), "text/html": still}, raw=True)

# %% [markdown] tags=["article"]
# Figure 0.1: the explorer; where no kernel runs, as in a page that was made of this notebook, its curtain alone, with the picture at 0.3 bits per pixel. The rate is that of the whole file, header and checksums included. When you change the codec, the slider goes to where the new one's file has as many bytes as the old one's: only then is the comparison fair. *CIEDE2000 map* shows, in place of the decode, by how much each pixel's colour is off; about 1 is just visible.

# %% [markdown] tags=["article"]
# ## What is in the file
#
# The same `Explorer`, without its buttons. Of each rate we keep the bytes by stream: luma (Y), the two colour differences (Cb, Cr), and the framing, which is the header, the lengths and the checksums.

# %% tags=["article", "nbval-ignore-output"]
places = range(20, 141, 20)
names = [first, *(name for name in ("jpeg444", "avif444_speed6") if name in coders and name != first)]
explorers = {name: Explorer(original, name) for name in names}
steps = {name: [explorer.place(place) for place in places] for name, explorer in explorers.items()}
rows = [
    {"codec": name, "quality": step.quality, "bytes": len(step.data), "bpp": step.bpp, **step.parts}
    | vars(metrics.compare(original, step.image))
    for name, own in steps.items()
    for step in own
]
table = pd.DataFrame(rows)
output.table("steps", table, f"'{sample}' at seven places of the slider, by codec.")
table[table.codec == first].set_index("quality")[
    ["bytes", *steps[first][0].parts, "psnr", "ciede2000"]
].round(1)

# %% tags=["article"]
figure, axes = figures.panels(1, 1, 7, 3, f"'{sample}' by {first}: bytes by stream")
base = np.zeros(len(places))
for part in steps[first][0].parts:
    sizes = np.array([step.parts[part] for step in steps[first]]) / 1000
    hue = figures.STREAM_HUES.get(part, "#bbbbbb")
    axes[0, 0].bar(range(len(places)), sizes, bottom=base, color=hue, label=part)
    base += sizes
axes[0, 0].set(xlabel="quality", ylabel="kilobytes of the file")
axes[0, 0].set_xticks(range(len(places)), [f"{step.quality:.0f}" for step in steps[first]])
axes[0, 0].legend()
bars = table[table.codec == first].dropna(axis=1)
output.figure("streams", figure, f"Figure 0.2: bytes by stream, '{sample}' by {first}.", bars)
plt.show()

# %% [markdown] tags=["article"]
# Figure 0.2: luma takes 64 to 76 % of a file, the two colour differences 23 to 30 % (most in the smallest), which is more than the fifth that we expected. The framing is 45 or 46 bytes, which one notices only in the very smallest files.

# %% [markdown] tags=["article"]
# How long a step takes hangs on the machine, so it is measured here and compared nowhere: the picture is brought to 768 x 512 and coded and decoded at five places that were not visited before. On two free cores of an x86-64 machine it was 0.48 s (0.22 for coding, 0.26 for the synthesis) with `scalar_fusion` and 0.71 s with `fusion`; on one thread 0.76 and 0.68 s. So the half second that we expected holds for the one, just so, and needs both cores; on a busy machine it does not hold.

# %% tags=["article", "nbval-ignore-output"]
large = np.asarray(Image.fromarray(original).resize((768, 512), Image.Resampling.LANCZOS))
for name in [n for n in ("scalar_fusion", "fusion") if n in coders]:
    own = Explorer(large, name)
    own.place(40)  # the first one warms up
    seconds = [sum(own.place(place).seconds.values()) for place in (60, 70, 80, 90, 100)]
    print(f"{name}: {np.median(seconds):.2f} s a step, threads: {torch.get_num_threads()}")

# %% [markdown] tags=["article"]
# ## The same slider, other codecs
#
# Seven places of each codec's slider make a curve: how far the picture is from the original (CIEDE2000: lower is better; PSNR: higher is better) over the bits per pixel of the file. This is one picture; notebook 06 draws the same of many, and says how sure it is.

# %% tags=["article"]
near = table[table.bpp < 1.5]
figure = figures.rate_distortion(near, ["ciede2000", "psnr"], f"'{sample}' by three codecs", across=2)
output.figure("curves", figure, "Figure 0.3: distance from the original over the rate, one picture.", near)
plt.show()


# %% tags=["article"]
def bpp_for(name, value):
    """Return the rate at which a codec reaches a CIEDE2000, between the slider's places."""
    own = table[table.codec == name].sort_values("ciede2000")
    return np.exp(np.interp(value, own.ciede2000, np.log(own.bpp)))


reached = np.interp(target_bpp, *table[table.codec == first][["bpp", "ciede2000"]].to_numpy().T)
ratios = {name: bpp_for(name, reached) / target_bpp for name in names[1:]}
print(f"CIEDE2000 of {first} at {target_bpp} bpp: {reached:.1f}; the others need, times its bytes:")
print({name: f"{ratio:.1f}" for name, ratio in ratios.items()})

# %% [markdown] tags=["article"]
# Figure 0.3: for the mean CIEDE2000 that `scalar_fusion` has at 0.3 bits per pixel, JPEG needs 2.8 times the bytes and AVIF (at speed 6, its quick preset) 1.5 times. In PSNR, which looks at colour little, AVIF draws level at half a bit per pixel: what is best hangs on what one asks for.

# %% [markdown] tags=["article"]
# ## Where colours are off, and the worst places
#
# What the button *CIEDE2000 map* shows, for all three at the same number of bytes, and then what the other four buttons jump to: the square with the largest blocking (steps at the 8 x 8 grid that the original has not), ringing (variance added beside edges), blur (gradient energy lost) and colour bias (shift of a 32 x 32 block's mean). Notebook 05 explains these maps and measures them on many pictures.

# %% tags=["article"]
searched = {name: codec.encode_at_bpp(own.codec, own.image, target_bpp) for name, own in explorers.items()}
equal = {name: own.at(searched[name].quality) for name, own in explorers.items()}
space = metrics.rgb_to_lab(original)
heats = {name: metrics.ciede2000_map(space, metrics.rgb_to_lab(step.image)) for name, step in equal.items()}
means = [{"codec": name, "bpp": equal[name].bpp, "mean": heat.mean()} for name, heat in heats.items()]
titles = {f"{row['codec']}: mean {row['mean']:.1f}": heats[row["codec"]] for row in means}
figure = figures.error_maps(titles, f"'{sample}' at {target_bpp} bpp", "CIEDE2000", vmax=15)
output.figure("map", figure, f"Figure 0.4: CIEDE2000 at {target_bpp} bpp.", means)
plt.show()

# %% [markdown] tags=["article"]
# Figure 0.4: on one scale JPEG's errors are the largest, and they are whole blocks of the soft background, where the eye sees them best. The others err in the fur, where it forgives.

# %% tags=["article"]
figure, axes = figures.panels(1, 1, 7, 3, f"'{sample}' at {target_bpp} bpp: how many pixels are off")
limits = np.linspace(0, 15, 61)
rows = []
for name, heat_of in heats.items():
    shares = [100 * (heat_of > limit).mean() for limit in limits]
    axes[0, 0].plot(limits, shares, label=name, markevery=4, ms=4.5, **figures.look(name))
    rows += [
        {"codec": name, "ciede2000": limit, "above": share}
        for limit, share in zip(limits, shares, strict=True)
    ]
axes[0, 0].set(xlabel="CIEDE2000", ylabel="pixels above (%)", yscale="log", ylim=(0.01, 100))
axes[0, 0].legend()
output.figure("pixels", figure, "Figure 0.5: share of pixels whose colour is off by more.", rows)
plt.show()

# %% [markdown] tags=["article"]
# Figure 0.5: the same maps, counted: on the left all pixels, on the right those few that are far off. The scale is logarithmic. A codec whose line lies lower has fewer pixels off by that much.

# %% tags=["article"]
maps = [metrics.artifact_maps(original, step.image) for step in equal.values()]
boxes = metrics.worst_boxes({kind: sum(m[kind] for m in maps) for kind in WORST}, zoom_px)
decodes = {name: step.image for name, step in equal.items()}
figure = figures.zooms(original, decodes, boxes, f"'{sample}' at {target_bpp} bpp, enlarged")
places_of = [{"artefact": kind, "top": t, "left": x, "side": s} for kind, (t, x, s) in boxes.items()]
output.figure("worst", figure, "Figure 0.6: the worst square of each artefact.", places_of)
plt.show()

# %% [markdown] tags=["article"]
# Figure 0.6: JPEG breaks fur and whisker into blocks and turns the soft background to one flat brown; AVIF and `scalar_fusion` keep the whiskers and smooth the finest hairs, AVIF a little more.

# %% [markdown] tags=["article"]
# ## Facts that must be equal on every machine

# %% tags=["nbval-check-output"]
print("data hash", photographs.digest[:16])
for name in names:
    step, coder_of = equal[name], codec.get_codec(name)
    same_file = step.data == coder_of.encode(original, step.quality)
    same_picture = np.array_equal(step.image, coder_of.decode(step.data))
    print(f"{name}: the step's bytes are the codec's own: {same_file}, its decode too: {same_picture}")
    print("  bytes grow along the slider:", table[table.codec == name].bytes.is_monotonic_increasing)
exact = {name: len(step.data) for name, step in equal.items() if name.startswith("jpeg4")}
print(f"bytes of '{sample}' at {target_bpp} bpp:", exact)

# %% tags=["article"]
output.finish()
print("saved", ", ".join(sorted(path.name for path in output.folder.iterdir())))

# %% [markdown] tags=["article"]
# ## Summary
#
# - At 0.3 bits per pixel, 5 kilobytes for this picture, `scalar_fusion` has a mean CIEDE2000 of 2.1; JPEG needs 2.8 times the bytes for the same, as expected more than twice.
# - Colour takes a quarter of the bytes, not less than a fifth: that expectation failed, on a picture that is coloured everywhere but softly.
# - A step of the slider keeps the analysis, codes anew and synthesises without reading the file back; the seconds that it took where the notebook was run stand above Figure 0.3. A step that was taken before costs nothing.
#
# **Limits.** One picture at a time, and a curve of seven places; a photograph of your own that is longer than 768 pixels is reduced, so that a step stays short, and reducing makes pictures easier to code in nothing but their size. The metrics are computed half a second after the slider rests. **Next.** Notebook 01 asks what there is to gain in colour at all.
