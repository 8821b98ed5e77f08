(() => {
  "use strict";
  const form = document.querySelector(".controls");
  const list = document.querySelector(".cards");
  const cards = [...list.children];
  const columns = Number(list.dataset.columns);
  // Viridis at eight points, interpolated between them.
  const stops = [
    [68, 1, 84], [70, 50, 127], [54, 92, 141], [39, 127, 142],
    [31, 161, 135], [74, 194, 109], [159, 218, 58], [253, 231, 37],
  ];
  const heat = (level) => {
    const at = (level / 15) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    return stops[low].map((value, i) => value + (at - low) * (stops[low + 1][i] - value));
  };
  const salient = [213, 94, 0];

  const paint = (canvas, kind) => {
    const text = canvas.dataset[kind];
    canvas.width = columns;
    canvas.height = text.length / columns;
    const image = new ImageData(canvas.width, canvas.height);
    [...text].forEach((digit, i) => {
      const level = parseInt(digit, 16);
      image.data.set(kind === "mask" ? [...salient, 255 * level] : [...heat(level), 255], 4 * i);
    });
    canvas.getContext("2d").putImageData(image, 0, 0);
    canvas.classList.toggle("sharp", kind === "mask");
  };

  const cover = (kind) => {
    for (const note of document.querySelectorAll("[data-for]")) note.hidden = note.dataset.for !== kind;
    for (const canvas of list.querySelectorAll("canvas")) {
      canvas.hidden = !kind;
      canvas.parentElement.classList.toggle("covered", Boolean(kind));
      if (kind) paint(canvas, kind);
    }
  };

  const arrange = () => {
    const { which, order, class: named } = Object.fromEntries(new FormData(form));
    const sign = { test: 0, sure: -1, unsure: 1 }[order];
    const sorted = [...cards].sort((a, b) => sign * (a.dataset.sure - b.dataset.sure));
    list.append(...sorted);
    let shown = 0;
    for (const card of cards) {
      const fits = which === "all" || card.classList.contains(which);
      card.hidden = !fits || (named !== "" && card.dataset.class !== named);
      shown += !card.hidden;
    }
    form.querySelector("output").value = `${shown} of ${cards.length} images`;
    document.querySelector(".nothing").hidden = shown > 0;
  };

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", (event) => {
    if (event.target.name === "overlay") cover(event.target.value);
    else arrange();
  });
  arrange(); // browsers keep the chosen filters across a reload
  cover(new FormData(form).get("overlay") ?? "");
})();
