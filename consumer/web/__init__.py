"""The console: pages for the people who close the books, on the service functions of the API and the command line.

Rendered here and readable without script. Nothing in it knows how to book, judge or replay anything.
"""
