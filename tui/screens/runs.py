from .page import Page
class Runs(Page):
    mode="runs"; help=""
    def body(self): return []
