// What is wrong with the report's page, as its tests see it: lists that are empty if nothing is.

const shown = (selector) => [...document.querySelectorAll(selector)].filter((part) => part.getClientRects().length);

// Words of table heads that are broken over lines. A line may end after a hyphen or a slash.
function brokenHeads() {
  const words = [];
  for (const cell of shown("th")) {
    const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) for (const word of texts.currentNode.data.matchAll(/[^\s/-]+/g)) {
      const range = document.createRange();
      range.setStart(texts.currentNode, word.index);
      range.setEnd(texts.currentNode, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1) words.push(word[0]);
    }
  }
  return words;
}

// Tables that are wider than their box, or reach out of the window.
function cutTables() {
  const cut = (table) => table.parentElement.scrollWidth > table.parentElement.clientWidth + 1
    || table.getBoundingClientRect().right > document.documentElement.clientWidth;
  return shown("table").filter(cut).map((table) => table.innerText.slice(0, 80));
}

// Parts of the figure's heads and marks that are outside of their cell, where they would lie over something else.
function strayMarks() {
  return shown(".overview :is(th, td) :is(span, use)").filter((part) => {
    const [inner, outer] = [part, part.closest("th, td")].map((one) => one.getBoundingClientRect());
    return inner.left < outer.left || inner.right > outer.right || inner.top < outer.top || inner.bottom > outer.bottom;
  }).map((part) => part.closest("tr").innerText);
}

// Texts whose contrast with what is behind them is below 4.5, by the formula of WCAG 2.
function faintTexts() {
  const rgba = (color) => [...color.match(/[\d.]+/g).map(Number), 1].slice(0, 4);
  const linear = (value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = (color) => {
    const [red, green, blue] = color.slice(0, 3).map((value) => linear(value / 255));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const behind = (part) => {
    for (; part; part = part.parentElement) {
      const color = rgba(getComputedStyle(part).backgroundColor);
      if (color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const part of shown("body *:not(script, style, svg *)")) {
    if (![...part.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim())) continue;
    const [dark, light] = [rgba(getComputedStyle(part).color), behind(part)].map(luminance).sort((a, b) => a - b);
    if ((light + 0.05) / (dark + 0.05) < 4.5) faint.push(`${part.tagName}.${part.className}: ${part.textContent}`);
  }
  return faint;
}

// The cards of the figures.
function cards() {
  return shown(".card").map((card) => {
    const style = getComputedStyle(card), box = card.getBoundingClientRect();
    const image = card.querySelector("img").getBoundingClientRect();
    return {
      color: style.backgroundColor.match(/\d+/g).slice(0, 3).map(Number),
      padding: parseFloat(style.paddingTop),
      radius: parseFloat(style.borderRadius),
      inside: image.left >= box.left && image.top >= box.top,
    };
  });
}

// Links whose target, after a click, is folded, out of sight, or under what sticks to the top.
async function lostLinks(selector) {
  const frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const lost = [];
  for (const link of document.querySelectorAll(selector)) {
    scrollTo(0, 0);
    link.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true }));
    await frame();
    const target = document.getElementById(link.getAttribute("href").slice(1));
    const box = (target.querySelector(":scope > :is(summary, h2, h3)") ?? target).getBoundingClientRect();
    const seen = document.elementFromPoint(box.left + box.width / 2, box.top + Math.min(box.height / 2, 10));
    if (!box.height || target.open === false || !target.contains(seen)) lost.push(link.getAttribute("href"));
  }
  return lost;
}

Object.assign(globalThis, { brokenHeads, cutTables, strayMarks, faintTexts, cards, lostLinks });
