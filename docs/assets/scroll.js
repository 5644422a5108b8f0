// Tables that are wider than the page scroll; the keyboard has to reach them, too.
(() => {
  const mark = () => document.querySelectorAll(".md-typeset__scrollwrap").forEach((wrap) => (wrap.tabIndex = 0));
  new MutationObserver(mark).observe(document.body, { childList: true, subtree: true });
  mark();
})();
