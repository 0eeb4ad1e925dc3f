// SPDX-License-Identifier: Apache-2.0
// Shows the labels of an image with their scores, or the values of a regression.

// How many labels are listed; those that reach their thresholds always are
const NUM_LABELS = 5;

const percent = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 6 });

/** What the page says by kind of model. */
export function describePurpose({ problem_type, labels }) {
  if (problem_type === "regression") return `An MLP-Mixer that estimates ${labels.join(", ")} from an image.`;
  const count = labels.length.toLocaleString("en");
  if (problem_type === "multi_label_classification") return `An MLP-Mixer that tells which of ${count} labels an image shows.`;
  return `An MLP-Mixer that tells ${count} labels apart.`;
}

/**
 * Return what to list for one image, in this order: `{ index, name, text, share, threshold, isStrong }`. `outputs` are
 * logarithms of probabilities, or the values of a regression.
 */
export function rankLabels(outputs, { problem_type, labels, thresholds }) {
  if (problem_type === "regression") {
    return labels.map((name, index) => ({ index, name, text: number.format(outputs[index]), isStrong: true }));
  }
  const isMulti = problem_type === "multi_label_classification";
  const entries = labels.map((name, index) => {
    const share = Math.exp(outputs[index]);
    const threshold = isMulti ? (thresholds?.[index] ?? 0.5) : null;
    return { index, name, text: percent.format(share), share, threshold, isStrong: isMulti && share >= threshold };
  });
  entries.sort((first, second) => second.share - first.share);
  if (!isMulti) entries[0].isStrong = true;
  return entries.filter((entry, rank) => rank < NUM_LABELS || (isMulti && entry.isStrong));
}

/** Say the answer in one sentence. */
export function summarize(entries, problemType) {
  if (problemType === "regression") return entries.map(({ name, text }) => `${name}: ${text}`).join(", ");
  const seen = entries.filter(({ isStrong }) => isStrong).map(({ name, text }) => `${name}, ${text}`);
  if (problemType === "multi_label_classification") {
    return seen.length ? `The model sees: ${seen.join("; ")}` : "The model sees none of its labels";
  }
  return `Most likely: ${seen[0]}`;
}

/** List the labels as buttons, which call `choose` with the index of theirs. */
export function showLabels(list, entries, choose) {
  list.replaceChildren(
    ...entries.map((entry) => {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.index = entry.index;
      button.append(createText("name", entry.name), " ", createText("value", entry.text));
      for (const part of button.children) part.classList.toggle("strong", entry.isStrong);
      if (entry.share !== undefined) button.append(createBar(entry));
      button.addEventListener("click", () => choose(entry.index));
      const item = document.createElement("li");
      item.append(button);
      return item;
    }),
  );
}

/** Mark the label that the map explains. */
export function markLabel(list, index) {
  for (const button of list.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.index) === index));
  }
}

function createText(className, text) {
  const element = document.createElement("span");
  element.className = className;
  element.textContent = text;
  return element;
}

function createBar({ share, threshold }) {
  const bar = createText("bar", "");
  bar.setAttribute("aria-hidden", "true");
  bar.style.setProperty("--share", share);
  if (threshold !== null) {
    bar.classList.add("limited");
    bar.style.setProperty("--threshold", threshold);
  }
  return bar;
}
