"""Command line: application, options generated from models, help pages, session, tables and charts. Only this package prints."""
