"""At home where people work: callbacks of training frameworks, and pages, frames and curves of runs."""
