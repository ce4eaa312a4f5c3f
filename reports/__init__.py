"""Reports and pages made from files on disk: tables, sentences, figures, HTML, Markdown, LaTeX."""
