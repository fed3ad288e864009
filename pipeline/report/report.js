"use strict";
// Pictures open large; arrow keys go on to the next one, Escape closes.
const shots = Array.from(document.querySelectorAll(".shot"));
const large = document.getElementById("large");
const image = large.querySelector("img");
const caption = large.querySelector("p");
let at = 0;

function show(number) {
  at = (number + shots.length) % shots.length;
  const small = shots[at].querySelector("img");
  image.src = small.src;
  image.alt = small.alt;
  caption.textContent = `${small.alt} · ${at + 1} of ${shots.length}`;
}

shots.forEach((shot, number) => shot.addEventListener("click", () => { show(number); large.showModal(); }));
large.addEventListener("keydown", (event) => {
  if (event.key === "ArrowRight") show(at + 1);
  if (event.key === "ArrowLeft") show(at - 1);
});
large.addEventListener("click", (event) => {
  const move = { next: 1, before: -1 }[event.target.value];
  if (move) show(at + move);
  else large.close();
});
large.addEventListener("close", () => shots[at].focus());
