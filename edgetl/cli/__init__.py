"""Command line: application, options generated from models, session, tables, charts. The only package that prints."""
