// A curtain between two pictures of one size, with zoom to single pixels: an anywidget's view, or, called on an
// element that holds two <img>, a static page. Drag the line, drag the picture, pinch or Ctrl + wheel;
// keys: arrows, + and -, 0 for the whole picture.
const STYLE = `
.curtain {font: 13px system-ui, sans-serif; width: 100%}
.curtain .stage {position: relative; overflow: hidden; background: #777; touch-action: none; cursor: grab;
  user-select: none; -webkit-user-select: none}
.curtain .stage.whole {touch-action: pan-y}
.curtain .layer {position: absolute; inset: 0; overflow: hidden; pointer-events: none}
.curtain .layer img {position: absolute; left: 0; top: 0; margin: 0; transform-origin: 0 0; max-width: none}
.curtain .mark {position: absolute; outline: 2px solid #fff; box-shadow: 0 0 0 3px #000; pointer-events: none}
.curtain .tag {position: absolute; top: 6px; padding: 1px 6px; background: #000b; color: #fff; pointer-events: none}
.curtain .line {position: absolute; top: 0; bottom: 0; width: 44px; margin-left: -22px; cursor: ew-resize;
  touch-action: none; background: linear-gradient(#fff, #fff) 50% / 2px 100% no-repeat}
.curtain .line::after {content: "\\2194"; position: absolute; top: calc(50% - 14px); left: 8px; width: 28px;
  line-height: 28px; text-align: center; border-radius: 50%; background: #fff; color: #000; font-size: 18px}
.curtain button {min-width: 36px; min-height: 36px; margin: 4px 4px 0 0; font: inherit; cursor: pointer}
.curtain :focus-visible {outline: 3px solid #1a73e8; outline-offset: -3px}`;
const ZOOMS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32];

export function curtain(el) {
  const images = [...el.querySelectorAll("img")], touches = new Map();
  const add = (tag, name, parent) => Object.assign(parent.appendChild(document.createElement(tag)), {className: name});
  el.classList.add("curtain");
  add("style", "", el).textContent = STYLE;
  const stage = add("div", "stage", el), bar = add("div", "bar", el);
  const layers = images.map((image) => (add("div", "layer", stage).append(image), image.parentNode)).reverse();
  stage.append(...layers); // the first picture on top, cut off at the line
  const mark = add("div", "mark", stage), tags = images.map(() => add("span", "tag", stage));
  const line = add("div", "line", stage);
  let zoom = 0, x = 0, y = 0, split = 0.5, fit = 1, box = null, spread = 0;
  tags[0].style.left = tags[1].style.right = "6px";
  const tell = (to, about) => Object.entries(about).forEach(([name, value]) => to.setAttribute(name, value));
  tell(stage, {tabindex: 0, role: "group", "aria-label": "picture: arrows move it, plus and minus zoom"});
  tell(line, {tabindex: 0, role: "slider", "aria-label": "curtain", "aria-valuemin": 0, "aria-valuemax": 100});

  const scale = () => zoom || fit;
  function draw() {
    const [w, h] = [stage.clientWidth, stage.clientHeight], s = scale();
    const clamp = (at, length, room) => Math.round(length < room ? (room - length) / 2 : Math.min(0, Math.max(room - length, at)));
    [x, y] = [clamp(x, s * images[0].naturalWidth, w), clamp(y, s * images[0].naturalHeight, h)];
    for (const image of images) {
      image.style.transform = `translate(${x}px, ${y}px) scale(${s})`;
      image.style.imageRendering = s < 1 ? "auto" : "pixelated";
    }
    images[0].parentNode.style.clipPath = `inset(0 ${w - Math.round(split * w)}px 0 0)`;
    line.style.left = `${Math.round(split * w)}px`;
    tell(line, {"aria-valuenow": Math.round(100 * split)});
    stage.classList.toggle("whole", s === fit);
    images.forEach((image, i) => (tags[i].textContent = image.alt));
    label.textContent = `zoom ${s < 1 ? `${Math.round(100 * s)} %` : `${s} : 1`}`;
    mark.hidden = !box;
    if (box) ["top", "left", "width", "height"].forEach((side, i) =>
      (mark.style[side] = `${i < 2 ? [y, x][i] + s * box[i] : s * box[2]}px`));
  }
  function layout() { // as broad as there is room, at most 1 : 1 when whole
    const {naturalWidth: w, naturalHeight: h} = images[0];
    if (!w || !el.clientWidth) return;
    fit = Math.min(1, el.clientWidth / w, 0.75 * Math.max(innerHeight, 400) / h);
    stage.style.width = `${Math.max(Math.round(fit * w), Math.min(el.clientWidth, 320))}px`;
    stage.style.height = `${Math.max(Math.round(fit * h), 240)}px`;
    draw();
  }
  function zoomTo(next, cx = stage.clientWidth / 2, cy = stage.clientHeight / 2) { // what is at (cx, cy) stays
    const before = scale();
    zoom = next <= fit ? 0 : next;
    [x, y] = [cx - (cx - x) * scale() / before, cy - (cy - y) * scale() / before];
    draw();
  }
  const step = (up, cx, cy) => zoomTo(up ? ZOOMS.find((z) => z > scale()) ?? 32 : ZOOMS.findLast((z) => z < scale()) ?? 0, cx, cy);
  const move = (to) => { split = Math.min(1, Math.max(0, to)); draw(); };
  const buttons = {"\u2212": () => step(false), "+": () => step(true), whole: () => zoomTo(0), "1 : 1": () => zoomTo(1)};
  for (const [text, act] of Object.entries(buttons)) Object.assign(add("button", "", bar), {textContent: text, onclick: act, type: "button"});
  const label = add("span", "zoom", bar), keys = {ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]};

  stage.onpointerdown = (e) => {
    stage.setPointerCapture(e.pointerId);
    touches.set(e.pointerId, {x: e.clientX, y: e.clientY, line: e.target === line});
    spread = 0;
  };
  stage.onpointerup = stage.onpointercancel = (e) => touches.delete(e.pointerId);
  stage.onpointermove = (e) => {
    const was = touches.get(e.pointerId), place = stage.getBoundingClientRect();
    if (!was) return;
    if (touches.size > 1) { // a pinch goes from one whole zoom to the next
      const [a, b] = touches.values(), apart = Math.hypot(a.x - b.x, a.y - b.y);
      spread ||= apart;
      if (apart > 1.3 * spread || apart < spread / 1.3) {
        step(apart > spread, (a.x + b.x) / 2 - place.left, (a.y + b.y) / 2 - place.top);
        spread = apart;
      }
    } else if (was.line) move((e.clientX - place.left) / place.width);
    else { x += e.clientX - was.x; y += e.clientY - was.y; draw(); }
    Object.assign(was, {x: e.clientX, y: e.clientY});
  };
  stage.addEventListener("wheel", (e) => {
    if (!e.ctrlKey) return;
    e.preventDefault();
    const place = stage.getBoundingClientRect();
    step(e.deltaY < 0, e.clientX - place.left, e.clientY - place.top);
  }, {passive: false});
  stage.onkeydown = (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey) return; // the browser's own
    const way = keys[e.key], far = e.shiftKey ? 5 : 1;
    if (e.target === line && way?.[0]) move(split - 0.02 * far * way[0]);
    else if (way) { x += 32 * far * way[0]; y += 32 * far * way[1]; draw(); }
    else if ("+=-0".includes(e.key)) e.key === "0" ? zoomTo(0) : step(e.key !== "-");
    else return;
    e.preventDefault();
    e.stopPropagation(); // notebooks have keys of their own
  };
  images.forEach((image) => image.addEventListener("load", layout));
  new ResizeObserver(layout).observe(el);
  layout();
  return (place) => { // show a square (top, left, side) as large as it fits, or the whole picture
    box = place?.length ? place : null;
    if (!box) return zoomTo(0);
    const room = Math.min(stage.clientWidth, stage.clientHeight);
    zoom = ZOOMS.findLast((z) => z * box[2] <= room) ?? 1;
    x = stage.clientWidth / 2 - zoom * (box[1] + box[2] / 2);
    y = stage.clientHeight / 2 - zoom * (box[0] + box[2] / 2);
    draw();
  };
}

export default {
  render({model, el}) {
    const images = ["before", "after"].map(() => el.appendChild(document.createElement("img")));
    const look = curtain(el), urls = {};
    const show = (name, image) => {
      URL.revokeObjectURL(urls[name]);
      urls[name] = URL.createObjectURL(new Blob([model.get(name)], {type: "image/webp"}));
      [image.alt, image.src] = [model.get(`${name}_name`), urls[name]];
    };
    ["before", "after"].forEach((name, i) => {
      show(name, images[i]);
      model.on(`change:${name}`, () => show(name, images[i]));
    });
    model.on("msg:custom", (message) => look(message.look));
    return () => Object.values(urls).forEach((url) => URL.revokeObjectURL(url));
  },
};
