// Draws the figures, gives them the page's colours, and lets the filters switch points and cards alike.
(async () => {
  const items = JSON.parse(document.getElementById("items").textContent);
  for (const item of items) await Bokeh.embed.embed_item(item);
  const plots = Bokeh.documents.flatMap((one) => one.roots());
  const map = plots.find((plot) => plot.name === "map");

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paint = () => {
    const style = getComputedStyle(document.documentElement);
    const [ink, soft, line, card] = ["--ink", "--soft", "--line", "--card"].map((name) => style.getPropertyValue(name).trim());
    for (const plot of plots) {
      for (const model of plot.references()) {
        if (model.type.endsWith("Axis")) {
          Object.assign(model, { axis_line_color: line, major_tick_line_color: line, major_label_text_color: soft,
            axis_label_text_color: soft, major_label_text_font_size: "12px", axis_label_text_font_size: "12px" });
        } else if (model.type === "Grid") {
          model.grid_line_color = line;
        } else if (model.type === "Legend") {
          Object.assign(model, { background_fill_color: card, background_fill_alpha: 0.8, border_line_color: null,
            label_text_color: ink, label_text_font_size: "12px" });
        } else if (model.type === "GlyphRenderer" && model.name === "ink") {
          model.glyph.line_color = soft;
        }
      }
    }
  };
  paint();
  dark.addEventListener("change", paint);

  const apply = (box) => {
    for (const drawn of map.renderers) if (drawn.name === box.value) drawn.visible = box.checked;
    for (const card of document.querySelectorAll(".card")) if (card.dataset.kind === box.value) card.hidden = !box.checked;
  };
  for (const box of document.querySelectorAll(".filters input")) {
    box.addEventListener("change", () => apply(box));
    apply(box); // a browser may keep what was chosen before a reload
  }

  // A click on a photo shows its card.
  const sources = new Set(map.renderers.map((drawn) => drawn.data_source));
  for (const source of sources) {
    const cards = source.get_column("card");
    if (cards === null) continue; // not a photo
    source.selected.change.connect(() => {
      const [chosen] = source.selected.indices;
      if (chosen === undefined) return;
      for (const card of document.querySelectorAll(".card.chosen")) card.classList.remove("chosen");
      const card = document.getElementById(cards[chosen]);
      if (card === null) return;
      card.classList.add("chosen");
      card.scrollIntoView({ behavior: "smooth", block: "center" });
    });
  }
  document.documentElement.dataset.ready = "yes";
})();
