"""Looking at runs: a page that is live while a run goes on, the same page as a file, and a terminal's view."""
