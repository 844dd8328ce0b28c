// One photo after another goes to the server; the page shows how far it is, and both photos on top of each other.

const $ = (id) => document.getElementById(id);
const photos = []; // {file, url, state, message, fraction, sharp: {url, name, type, headers}}
let shown = null; // the photo in the viewer
let running = null; // the photo at the server: {photo, request}
let limits = {};
let token = sessionStorage.getItem("token") || "";
let place = 50; // of the divider, per cent of the view

const PRESETS = { full: "Best, slow", balanced: "Balanced", fast: "Quick" };
const SUFFIXES = { jpeg: ["jpg", "jpeg", "jpe", "jfif"], tiff: ["tif", "tiff"], avif: ["avif", "avifs"], bmp: ["bmp", "dib"] };
const MARKS = { waiting: "…", running: "▸", done: "✓", failed: "!" };

// -- photos in

function add(files) {
  for (const file of files) {
    const photo = { file, url: URL.createObjectURL(file), state: "waiting", message: "Waits for its turn", fraction: null };
    if (limits.max_bytes && file.size > limits.max_bytes) fail(photo, `The file is larger than ${size(limits.max_bytes)}.`);
    photos.push(photo);
  }
  shown = photos[photos.length - files.length] || shown;
  draw();
  next();
}

const size = (bytes) => `${Math.round(bytes / 1e6)} MB`;

$("choose").onchange = (event) => {
  add(event.target.files);
  event.target.value = "";
};
document.onpaste = (event) => add(event.clipboardData.files);
document.ondragover = (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
};
document.ondragleave = () => $("drop").classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  add(event.dataTransfer.files);
};

// -- to the server and back

function next() {
  const photo = running ? null : photos.find((one) => one.state === "waiting");
  if (photo) send(photo);
}

function send(photo) {
  const request = new XMLHttpRequest();
  running = { photo, request };
  Object.assign(photo, { state: "running", message: "Sending", fraction: 0 });
  request.open("POST", "api/deblur");
  request.setRequestHeader("Accept", "application/x-ndjson");
  if (token) request.setRequestHeader("Authorization", `Bearer ${token}`);
  request.upload.onprogress = (event) => tell(photo, "Sending", event.loaded / event.total);
  request.onprogress = () => follow(photo, request.responseText);
  request.onload = () => finish(photo, request);
  request.onerror = () => end(photo, () => fail(photo, "The server does not answer. Is it still running?"));
  request.onabort = () => end(photo, () => fail(photo, "Stopped."));
  const form = new FormData($("form"));
  for (const [name, value] of [...form]) if (value === "") form.delete(name);
  form.append("image", photo.file, photo.file.name);
  request.send(form);
  draw();
}

// The lines that have come so far; the last one may be incomplete.
function lines(text) {
  return text.slice(0, text.lastIndexOf("\n")).split("\n").filter(Boolean);
}

function follow(photo, text) {
  const all = lines(text).filter((line) => line.length < 1000);
  if (!all.length) return;
  const { ahead, done, total } = JSON.parse(all[all.length - 1]);
  if (ahead) tell(photo, `Waiting: ${ahead} before this one`, null);
  else if (total) tell(photo, `Sharpening: step ${Math.min(done + 1, total)} of ${total}`, done / total);
  else tell(photo, "Sharpening", null);
}

function finish(photo, request) {
  if (request.status === 401) return end(photo, () => askToken(photo));
  if (request.status === 429) return busy(photo, Number(request.getResponseHeader("Retry-After")) || 2);
  let last = {};
  try {
    last = JSON.parse(request.status === 200 ? lines(request.responseText).pop() : request.responseText);
  } catch {
    last = { error: { message: "The answer was cut short." } };
  }
  end(photo, () => {
    if (last.error) fail(photo, last.error.message);
    else succeed(photo, last);
  });
}

function succeed(photo, { image, type, headers }) {
  const bytes = Uint8Array.from(atob(image), (letter) => letter.charCodeAt(0));
  const seconds = Number(/done;dur=([\d.]+)/.exec(headers["server-timing"])[1]) / 1000;
  const warnings = headers["uid-warnings"] ? ` ${JSON.parse(headers["uid-warnings"]).join(". ")}.` : "";
  photo.sharp = { url: URL.createObjectURL(new Blob([bytes], { type })), name: nameFor(photo.file.name, type) };
  Object.assign(photo, { state: "done", message: `Sharpened in ${seconds.toFixed(1)} s.${warnings}`, fraction: null });
}

function fail(photo, message) {
  Object.assign(photo, { state: "failed", message, fraction: null });
}

function end(photo, become) {
  running = null;
  become();
  draw();
  next();
}

function busy(photo, seconds) {
  tell(photo, `The server is busy; again in ${seconds} s`, null);
  setTimeout(() => end(photo, () => Object.assign(photo, { state: "waiting" })), 1000 * seconds);
}

function askToken(photo) {
  fail(photo, "This server wants its token.");
  $("ask").returnValue = "";
  $("ask").showModal();
  $("ask").onclose = () => {
    if ($("ask").returnValue !== "go") return;
    token = $("token").value;
    sessionStorage.setItem("token", token);
    Object.assign(photo, { state: "waiting", message: "Waits for its turn" });
    draw();
    next();
    about();
  };
}

// The photo's own name; another suffix only where the file is of another kind.
function nameFor(name, type) {
  const kind = type.replace("image/", "");
  const suffixes = SUFFIXES[kind] || [kind];
  const dot = name.lastIndexOf(".");
  const own = dot < 0 ? "" : name.slice(dot + 1).toLowerCase();
  return suffixes.includes(own) ? name : `${dot < 0 ? name : name.slice(0, dot)}.${suffixes[0]}`;
}

// -- what is shown

function tell(photo, message, fraction) {
  Object.assign(photo, { message, fraction });
  if (photo === shown) drawState();
}

function draw() {
  document.body.classList.toggle("some", photos.length > 0);
  $("viewer").hidden = !shown;
  $("strip").hidden = photos.length < 2;
  $("strip").replaceChildren(...photos.map(thumbnail));
  if (!shown) return;
  const { sharp } = shown;
  $("view").classList.toggle("alone", !sharp);
  const another = show("before", shown.url);
  if ((sharp && show("after", sharp.url)) || another) zoom(false);
  drawState();
}

// Show an image unless it is shown already; whether it was another one.
function show(id, url) {
  if ($(id).src === url) return false;
  $("viewer").classList.remove("unseen");
  $(id).src = url;
  return true;
}

// Of a kind that this browser does not show, such as TIFF, or broken.
$("before").onerror = $("after").onerror = () => {
  $("viewer").classList.add("unseen");
  drawState();
};

function drawState() {
  const { state, message, fraction, sharp } = shown;
  $("viewer").classList.toggle("failed", state === "failed");
  $("status").textContent = message;
  $("progress").hidden = state !== "running";
  if (fraction === null) $("progress").removeAttribute("value");
  else $("progress").value = fraction;
  $("stop").hidden = state !== "running";
  $("again").hidden = state !== "done" && state !== "failed";
  $("save").hidden = !sharp || state === "running";
  $("note").hidden = state === "failed" || !$("viewer").classList.contains("unseen");
  if (sharp) Object.assign($("save"), { href: sharp.url, download: sharp.name });
}

function thumbnail(photo) {
  const item = document.createElement("li");
  const button = item.appendChild(document.createElement("button"));
  const image = button.appendChild(document.createElement("img"));
  const mark = button.appendChild(document.createElement("span"));
  Object.assign(image, { src: photo.url, alt: photo.file.name });
  mark.textContent = MARKS[photo.state];
  button.title = photo.file.name;
  button.setAttribute("aria-label", `${photo.file.name}: ${photo.state}`);
  button.setAttribute("aria-current", photo === shown);
  button.onclick = () => {
    shown = photo;
    draw();
    $("strip").querySelector('[aria-current="true"]').focus();
  };
  return item;
}

$("stop").onclick = () => running && running.photo === shown && running.request.abort();
$("again").onclick = () => {
  Object.assign(shown, { state: "waiting", message: "Waits for its turn" });
  draw();
  next();
};

// -- before and after

function divide(percent) {
  place = Math.min(100, Math.max(0, percent));
  $("slider").value = place;
  $("divider").style.left = `${place}%`;
  const view = $("view").getBoundingClientRect();
  const frame = $("frame").getBoundingClientRect();
  const cut = frame.width ? (100 * (view.left + (place / 100) * view.width - frame.left)) / frame.width : place;
  $("after").style.clipPath = `inset(0 0 0 ${cut}%)`;
}

const percentOf = (event) => {
  const view = $("view").getBoundingClientRect();
  return (100 * (event.clientX - view.left)) / view.width;
};

$("slider").oninput = () => divide(Number($("slider").value));
$("stage").onscroll = () => divide(place);
$("before").onload = () => {
  zoom($("viewer").classList.contains("actual"));
};
new ResizeObserver(() => divide(place)).observe($("view"));

$("view").onpointerdown = (event) => {
  if (event.button || !shown.sharp) return;
  const onDivider = $("divider").contains(event.target);
  const pans = $("viewer").classList.contains("actual") && !onDivider;
  if (pans && event.pointerType !== "mouse") return; // touch scrolls by itself
  const from = { x: event.clientX + $("stage").scrollLeft, y: event.clientY + $("stage").scrollTop };
  const move = (now) => {
    if (pans) $("stage").scrollTo(from.x - now.clientX, from.y - now.clientY);
    else divide(percentOf(now));
  };
  $("view").setPointerCapture(event.pointerId);
  $("view").onpointermove = move;
  $("view").onpointerup = $("view").onpointercancel = () => ($("view").onpointermove = null);
  if (!pans) move(event);
  $("slider").focus({ preventScroll: true });
  event.preventDefault();
};

// 100 %: one pixel of the photo is one of the screen.
function zoom(actual) {
  $("viewer").classList.toggle("actual", actual);
  $("zoom").setAttribute("aria-pressed", actual);
  $("before").style.width = actual ? `${$("before").naturalWidth / devicePixelRatio}px` : "";
  const { scrollWidth, clientWidth, scrollHeight, clientHeight } = $("stage");
  if (actual) $("stage").scrollTo((scrollWidth - clientWidth) / 2, (scrollHeight - clientHeight) / 2);
  divide(place);
}

$("zoom").onclick = () => zoom(!$("viewer").classList.contains("actual"));
$("view").ondblclick = $("zoom").onclick;
$("full").hidden = !document.fullscreenEnabled;
$("full").onclick = () => (document.fullscreenElement ? document.exitFullscreen() : $("viewer").requestFullscreen());
document.onfullscreenchange = () => {
  $("full").textContent = document.fullscreenElement ? "Leave full screen" : "Full screen";
  divide(place);
};

document.onkeydown = (event) => {
  const typing = event.target.matches("input:not([type=range], [type=file], [type=radio]), select");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !shown) return;
  const button = { z: "zoom", f: "full", d: "save" }[event.key];
  if (button && !$(button).hidden) $(button).click();
};

// -- options

$("form").strength.oninput = (event) => ($("strong").textContent = `${Math.round(100 * event.target.value)} %`);

async function about() {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch("api", { headers });
  if (!answer.ok) return;
  limits = (await answer.json())["x-uid"];
  if (!limits.model) return setTimeout(about, 1000);
  const { name, backend, trained, presets, preset } = limits.model;
  $("model").textContent = `model ${name} on ${backend}${trained ? "" : "; it is not trained, so expect noise"}`;
  $("presets").hidden = presets.length < 2;
  const choices = presets.map((one) => {
    const label = document.createElement("label");
    const input = document.createElement("input");
    Object.assign(input, { type: "radio", name: "preset", value: one, checked: one === preset });
    label.append(input, ` ${PRESETS[one] || one}`);
    return label;
  });
  $("presets").replaceChildren($("presets").firstElementChild, ...choices);
}

about();
