"""Parts of Cloze for people who train with other libraries; each file imports the one it is named after."""
