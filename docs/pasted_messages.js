// Lets the site's search find a pasted error message, and shows it on the page of all messages.
// Sphinx's search wants each word on the page; a user's paths and numbers are on none.
"use strict";

const messagesPage = "docs/error-messages";
const fewestWords = 5; // of a message; fewer are a topic

function wordsOf(text) {
  return text.toLowerCase().match(/[\p{Letter}\p{Number}_]{2,}/gu) || [];
}

// The index in `messages` of the one that `pasted` is most like; -1 without one.
// A message's words count for it where they are in `pasted`, half as much against it elsewhere.
function closest(pasted, messages) {
  const given = new Set(wordsOf(pasted));
  const scores = messages.map((message) =>
    [...new Set(wordsOf(message))].reduce((sum, word) => sum + (given.has(word) ? 1 : -0.5), 0),
  );
  const best = Math.max(0, ...scores);
  return best > fewestWords / 2 ? scores.indexOf(best) : -1;
}

// The terms that the page of messages has, if `query` looks like one of them; otherwise null.
function termsOfMessage(query, terms, index) {
  const page = index.docnames.indexOf(messagesPage);
  const pagesOf = (term) => [index.terms[term] ?? [], index.titleterms[term] ?? []].flat();
  const onPage = [...terms].filter((term) => pagesOf(term).includes(page));
  const isPasted = wordsOf(query).length >= fewestWords && 2 * onPage.length >= terms.size;
  return isPasted && onPage.length ? onPage : null;
}

if (typeof Search !== "undefined") {
  const parse = Search._parseQuery;
  let isPasted = false;
  Search._parseQuery = (query) => {
    const parsed = parse(query);
    const terms = termsOfMessage(query, parsed[1], Search._index);
    isPasted = terms !== null;
    if (isPasted) {
      parsed[1] = new Set(terms);
      sessionStorage.setItem("pasted-message", query);
      localStorage.removeItem("sphinx_highlight_terms"); // would mark single words all over
    }
    return parsed;
  };
  // First for a message, last for a topic, of which it has all words.
  Scorer.score = ([docname, , , , score]) =>
    docname !== messagesPage ? score : isPasted ? score + 100 : score / 4;
} else if (document.getElementById("error-messages")) {
  const pasted = sessionStorage.getItem("pasted-message");
  const items = [...document.querySelectorAll("#error-messages section > ul > li")];
  const found = pasted ? closest(pasted, items.map((item) => item.textContent)) : -1;
  if (found >= 0) {
    items[found].classList.add("pasted-message");
    // At once, and when the page is laid out: a smooth scroll is cancelled by what else scrolls.
    const show = () => items[found].scrollIntoView({ block: "center", behavior: "instant" });
    show();
    window.addEventListener("load", show);
  }
  sessionStorage.removeItem("pasted-message");
}
