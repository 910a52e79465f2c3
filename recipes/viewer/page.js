// Of the page of recipes/app.py: what is too large is not sent, and the report is scrolled to. LIMIT: MB.
() => {
  const refuse = (event, files) => {
    const large = [...files].find((file) => file.size > LIMIT * 2 ** 20);
    const place = document.querySelector("#oversize");
    place.hidden = !large;
    place.textContent = large
      ? `${large.name} has ${Math.ceil(large.size / 2 ** 20)} MB, and at most LIMIT are taken: export it smaller, ` +
        "or start the app with a larger --max_upload"
      : "";
    if (!large) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (event.target.type === "file") event.target.value = "";
  };
  document.addEventListener("change", (event) => {
    if (event.target.matches("input[type=file]")) refuse(event, event.target.files);
  }, true);
  document.addEventListener("drop", (event) => {
    if (event.target.closest(".drop")) refuse(event, event.dataTransfer.files);
  }, true);

  window.showAnswers = () => {
    const answers = document.querySelector("#answers");
    if (!document.querySelector("#frontal .xray img")) return;
    const { top } = answers.getBoundingClientRect();
    if (top >= 0 && top < innerHeight / 2) return;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    answers.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
  };
}
