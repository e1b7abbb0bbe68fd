"""The report of ``trimtab evaluate``: one HTML file that needs nothing else, and plots for papers."""
