"""Reports and pages made from files on disk: typed values, sentences, figures, HTML, Markdown."""
